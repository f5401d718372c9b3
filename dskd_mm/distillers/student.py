"""The student of a distiller: a host's model, built as its own library builds it."""

import copy
from collections.abc import Mapping
from typing import Any

from mmengine.config import ConfigDict
from mmengine.model import BaseModel
from mmengine.registry import MODELS as MMENGINE_MODELS
from torch import nn

from dskd_mm.sites.classification import AS_IMAGE_CLASSIFIER
from dskd_mm.utils.checkpoint import STUDENT_PREFIX, saved_names


def build_student(config: dict | nn.Module, data_preprocessor: dict | nn.Module | None) -> BaseModel:
    """Build the student under the host's scope; a model is returned as it is.

    Args:
        config (dict | nn.Module): Its config, or itself.
        data_preprocessor (dict | nn.Module, optional): Its preprocessor if its config has none.

    Raises:
        TypeError: If it is no model of mmengine, or itself a distiller.
    """
    student: Any = config
    if isinstance(config, dict):
        if 'type' not in config:
            raise TypeError(
                'student expects the config of a model, dict(type=...), or student=_base_.model, but got one with the keys '
                f'{sorted(config)}.'
            )
        # Hosts write into the configs of what they build, and the teacher may have the same one.
        cfg = ConfigDict(copy.deepcopy(config))
        if cfg.get('data_preprocessor') is None:
            cfg.data_preprocessor = data_preprocessor
        student = MMENGINE_MODELS.build(cfg)
    refuse_bare_network(student)
    if hasattr(student, 'distill') or not isinstance(student, BaseModel):
        raise TypeError(
            f'The student is expected to be a plain model of a host library, but got a {type(student).__name__}. Take the '
            "config of the plain student as _base_, or the distiller's student: student=_base_.model.student."
        )
    return student


def refuse_bare_network(student: Any) -> None:
    """Refuse a network without losses as a student, and say what takes one.

    Raises:
        TypeError: If it is one.
    """
    if isinstance(student, nn.Module) and not isinstance(student, BaseModel):
        kind = type(student)
        raise TypeError(
            'The student is expected to be a model of a host library, which has losses of its own, but got a bare '
            f'{kind.__module__}.{kind.__name__}. In a training loop of your own take dskd_mm.distil(student, teacher) '
            '(docs/en/pytorch.md). In a config give the network as the backbone of such a model: '
            f"{AS_IMAGE_CLASSIFIER}, or with backbone=dict(type='mmpretrain.ResNet', depth=18), which takes the weights of "
            "torchvision's."
        )


def accept_checkpoint(student: nn.Module, state_dict: dict[str, Any], prefix: str, renamed: Mapping[str, str]) -> None:
    """Give the keys of a plain student's or an older checkpoint the names that a distiller's have, in place.

    Args:
        student (nn.Module): The student.
        state_dict (dict): What is to be loaded into the distiller.
        prefix (str): Where the distiller stands in it.
        renamed (Mapping[str, str]): Prefixes of keys in older checkpoints, and what they are now.

    Raises:
        ValueError: If no key belongs to the student.
    """
    if not any(key.startswith(prefix + STUDENT_PREFIX) for key in state_dict):
        keys = [key.removeprefix(prefix) for key in state_dict if key.startswith(prefix)]
        if set(student.state_dict()).isdisjoint(keys):
            raise ValueError(
                f'The checkpoint is expected to hold a {type(student).__name__} student or a distiller of one, but none of its '
                f'{len(keys)} keys ({", ".join(keys[:3])}, ...) belongs to it: is it of another architecture?'
            )
        # All of them: what does not fit is for the student to translate or for the loading to report.
        for key in keys:
            state_dict[prefix + STUDENT_PREFIX + key] = state_dict.pop(prefix + key)
    for old, new in renamed.items():
        for key in [key for key in state_dict if key.startswith(prefix + old)]:
            state_dict[prefix + new + key.removeprefix(prefix + old)] = state_dict.pop(key)


def keep_names(distiller: Any, state_dict: dict[str, Any], prefix: str, metadata: Any) -> None:
    """Give the student in a distiller's state dict the names that it has in its own, in place; a hook of modules."""
    start = prefix + STUDENT_PREFIX
    renamed = {start + inner: start + own for inner, own in saved_names(distiller.student).items() if inner != own}
    state_dict.update({renamed[key]: state_dict.pop(key) for key in [*state_dict] if key in renamed})
