"""What every distiller verifies of its two models, its losses and its optimizer."""

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper
from torch import Tensor, nn
from torch.nn import functional as F

from dskd_mm.features.norm import BatchNorm2d
from dskd_mm.structures import TapSpec
from dskd_mm.utils.checkpoint import STUDENT_PREFIX


def check_loss_names(losses: Any) -> None:
    """Check that ``distill_losses`` names losses, by names that modules may have.

    Raises:
        ValueError: If it is no dict, or a name is empty, has a dot, or is that of an attribute of modules.
    """
    if not isinstance(losses, Mapping):
        raise ValueError(f'distill_losses expects losses by names of your own, dict(kd=dict(type=...)), but got {losses!r}.')
    for name in losses:
        if not name or '.' in name or hasattr(nn.ModuleDict(), name):
            raise ValueError(
                f'distill_losses expects losses by names of your own, without dots and such as no module of torch has, but got '
                f'{name!r}: rename it.'
            )


def check_names(student: Collection[str], method: Collection[str], added: Collection[str]) -> None:
    """Check that no loss is logged under the name of another, which it would replace.

    Args:
        student (Collection[str]): Names of what the student returns.
        method (Collection[str]): Names of what the distiller's method returns.
        added (Collection[str]): Names of what its ``distill_losses`` return.

    Raises:
        ValueError: If a name occurs twice.
    """
    for name in added:
        if name in student or name in method:
            raise ValueError(
                f'distill_losses.{name.removeprefix("loss_")} would be logged as {name!r}, but '
                f'{"the student" if name in student else "the method"} returns a loss of that name already: rename it in '
                'distill_losses.'
            )
    shared = sorted(set(student) & set(method))
    if shared:
        raise ValueError(f'The student and the distiller both return {shared}; rename those of the student.')


def check_parameter_groups(optim_wrapper: Any) -> None:
    """Check that learning rates which decay from layer to layer were given to the student by its own names.

    Raises:
        ValueError: If a constructor of mmdet or mmseg, which look for names that begin with 'backbone.', saw the distiller. It
            is not noticed where a wrapper for several processes steps instead of the distiller.
    """
    for group in optim_wrapper.param_groups if isinstance(optim_wrapper, OptimWrapper) else ():
        is_decayed = {'lr_scale', 'group_name'} <= set(group)  # as these constructors mark their groups
        if is_decayed and any(name.startswith(STUDENT_PREFIX) for name in group.get('param_names') or ()):
            raise ValueError(
                "The constructor of the optimizer is expected to see the student's own parameters, 'backbone...', but it saw "
                f"{group['param_names'][0]!r}, and every layer has the learning rate of the last. Train by dskd_mm's own "
                "tools/train.py, or set optim_wrapper.constructor='dskd_mm.StudentOptimWrapperConstructor' and "
                'optim_wrapper.paramwise_cfg.constructor to the one that is there now.'
            )


def check_specs(student: TapSpec, teacher: TapSpec) -> None:
    """Refuse a teacher whose classifier cannot tell of what the student's predicts.

    Raises:
        ValueError: If their classes, anchors or levels differ.
    """
    differ = student.num_classes != teacher.num_classes
    if differ and student.num_labels == teacher.num_labels > 0:
        raise ValueError(
            f"The student's classifier has {student.num_classes} outputs for {student.num_labels} classes, the teacher's "
            f'{teacher.num_classes}: one has an output for the background, or a single one for two classes, and the other has '
            'not. Give both heads the same loss (use_sigmoid) and out_channels, or distil at the neck with '
            "site=dict(type='dskd_mm.NeckSite')."
        )
    if differ:
        raise ValueError(
            f'The student classifies {student.num_classes} classes ({", ".join(student.classifiers)}), the teacher '
            f'{teacher.num_classes} ({", ".join(teacher.classifiers)}): both must know the same classes. A teacher that knows '
            'the classes of the data and others needs teacher=dict(..., match_classes=True) in a config.'
        )
    if (student.num_priors, student.strides) != (teacher.num_priors, teacher.strides):
        raise ValueError(
            f'The student makes {student.num_priors} predictions at each location of levels of the strides {student.strides}, '
            f'the teacher {teacher.num_priors} at {teacher.strides}: their predictions do not correspond. Give both the same '
            "anchors and strides, or distil at the neck with site=dict(type='dskd_mm.NeckSite')."
        )
    if student.num_levels and teacher.num_levels and student.num_levels != teacher.num_levels:
        raise ValueError(
            f"The student's neck makes {student.num_levels} levels, the teacher's {teacher.num_levels}: the teacher's head "
            'takes no other number. Give both necks the same num_outs.'
        )
    if teacher.sigmoid != student.sigmoid:
        print_log(
            'The student and the teacher disagree on whether classes are independent (sigmoid) or exclusive (softmax); '
            f"the teacher's classifier is used as {'sigmoid' if teacher.sigmoid else 'softmax'}.",
            logger='current',
            level=logging.WARNING,
        )


def check_pooling(feature: Tensor, logits: Tensor, classifier: Any) -> None:
    """Check that a classifier's logits follow from the average of a tapped map.

    Raises:
        ValueError: If they do not: the tap is not what the classifier sees.
    """
    with torch.no_grad():
        if not bool(logits.isfinite().all()):
            return  # nothing can be told, and another fault is to be reported
        # Not by calling the layer: it is tapped.
        expected = F.linear(feature.mean(dim=(2, 3)).float(), classifier.weight.float().flatten(1), classifier.bias)
        if not torch.allclose(expected.float(), logits.float(), rtol=0.05, atol=0.05 * float(logits.abs().max()) + 1e-3):
            raise ValueError(
                "The input of the student's pooling does not lead to its logits: a layer between pooling and classifier "
                "changes it. Tap the classifier's own input with site=dict(feature=dict(path='head.<classifier>', io='input', "
                'channels=...)).'
            )


def named_losses(losses: Mapping[str, Tensor | Sequence[Tensor]]) -> Iterable[tuple[str, Tensor]]:
    """Yield the losses that are summed, one by one: heads return lists where there are levels."""
    for name, value in losses.items():
        if 'loss' in name:
            for level in [value] if isinstance(value, Tensor) else value:
                yield f'loss {name!r}', level


def explain_single_vector(distiller: nn.Module) -> str:
    """Return what a batch norm of a distiller lacks that got a single vector, and the options that mend it."""
    found: dict[str, None] = {}
    for path, module in distiller.named_modules():
        if isinstance(module, BatchNorm2d):
            names = path.replace('noise_adapter', 'denoiser').split('.')  # the adapter takes the denoiser's
            inner = next((i for i, name in enumerate(names) if name in ('layers', 'features', 'encoder', 'attention')), None)
            found['.'.join(name for name in names[:inner] if name != 'diffusion')] = None
    return (
        f'A batch norm of {type(distiller).__name__} expects several vectors, but got the only one of a single image or '
        'proposal. Train on at least 2 images at a time (drop_last=True in the train dataloader), or take group norms: '
        f"norm='GN' in {', '.join(found)} (--cfg-options {' '.join(f'model.{option}.norm=GN' for option in found)})."
    )
