"""Building the losses that compare a student with its teacher, bound to both."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from dskd_mm.arguments import arguments_of, check_arguments
from dskd_mm.losses.base import DistillLoss
from dskd_mm.registry import MODELS
from dskd_mm.structures import TapSpec


def build_loss(
    name: str,
    config: Any,
    student: TapSpec,
    teacher: TapSpec,
    kind: Any = DistillLoss,
    **defaults: Any,
) -> Any:
    """Build a loss and bind it to student and teacher.

    Args:
        name (str): The argument that it is given by, such as 'distill_losses.kd', for messages.
        config (dict): Its config, with or without the prefix ``dskd_mm.`` of its type; channels are filled in.
        student (TapSpec): Where the student is tapped.
        teacher (TapSpec): Where the teacher is tapped.
        kind (type): The class that it has to be of. Defaults to :class:`~dskd_mm.losses.DistillLoss`.
        defaults: Arguments where the config names none and the loss takes them.

    Returns:
        DistillLoss: The loss, of that kind.

    Raises:
        TypeError: If it is no loss of that kind, or has no such argument.
        ValueError: If it reads what the site does not offer, or what it is not defined for.
    """
    cls: Any = config.get('type') if isinstance(config, dict) else None
    cls = MODELS.get(cls) if isinstance(cls, str) else cls
    if not isinstance(cls, type) or not issubclass(cls, kind):
        known = sorted(key for key, other in MODELS.module_dict.items() if issubclass(other, kind) and other is not kind)
        raise TypeError(
            f"{name} expects the config of a {kind.__name__} of dskd_mm ({', '.join(known)}), type='dskd_mm.KDLoss', but got "
            f'{config}.'
        )
    found: Any = cls
    check_arguments(cls, config, name)
    defaults = {key: value for key, value in defaults.items() if key in arguments_of(cls)}
    arguments = {**defaults, **found.arguments_for(config, student, teacher, name), **config, 'type': cls}
    loss: Any = MODELS.build(arguments)
    loss.bind(student, teacher, name)
    return loss


def build_losses(argument: str, configs: Mapping[str, Any], student: TapSpec, teacher: TapSpec) -> nn.ModuleDict:
    """Build losses by names of the user's own; see :func:`build_loss`.

    Args:
        argument (str): What they are given by, for messages.
        configs (Mapping[str, Any]): Their configs; None leaves one out that a config before had.
        student (TapSpec): Where the student is tapped.
        teacher (TapSpec): Where the teacher is tapped.
    """
    given = {name: config for name, config in configs.items() if config is not None}
    return nn.ModuleDict({name: build_loss(f'{argument}.{name}', config, student, teacher) for name, config in given.items()})
