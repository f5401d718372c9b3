"""Any losses between a student and its teacher: the everyday baselines by config."""

from typing import Any

from torch import nn

from dskd_mm.distillers.base import Distiller
from dskd_mm.registry import MODELS


@MODELS.register_module()
class ConfigurableDistiller(Distiller):
    """Adds to the student's own losses those of ``distill_losses`` and nothing else: the everyday baselines.

    .. code-block:: python

        model = dict(
            type='dskd_mm.ConfigurableDistiller',
            student=_base_.model,
            teacher=dict(config=..., checkpoint=...),
            distill_losses=dict(kd=dict(type='dskd_mm.KDLoss', temperature=4)),
        )

    ============================= =======================================================================
    loss of :mod:`dskd_mm.losses` what it compares
    ============================= =======================================================================
    ``KDLoss``                    class logits of any task
    ``DKDLoss``                   logits of exclusive classes (softmax)
    ``DISTLoss``                  logits of at least two classes
    ``FitNetLoss``, ``PKDLoss``   maps and vectors
    ``ATLoss``                    maps
    ``CWDLoss``                   maps, and logits of segmenters and dense detectors with ``on='logits'``
    ``MGDLoss``                   maps, and vectors with ``mask='channel'``
    ``BoxLoss``                   boxes of two detectors whose heads encode them alike
    ============================= =======================================================================

    Further modules are read by name, and a detector's neck is the site's feature with ``site=dict(type='dskd_mm.NeckSite')``:

    .. code-block:: python

        layers=dict(
            stage3=dict(student=dict(path='backbone.layer3'), teacher=dict(path='backbone.layer3')),
        ),
        distill_losses=dict(
            at=dict(type='dskd_mm.ATLoss', on='stage3'),
            dist=dict(type='dskd_mm.DISTLoss'),
        ),

    Args:
        student (dict | nn.Module): The student: a host's model.
        teacher (dict): ``dict(config=..., checkpoint=...)``, see :class:`~dskd_mm.teacher.FrozenTeacher`.
        distill_losses (dict[str, dict]): The losses by a name of your own; see :class:`Distiller`.
        kwargs: Further arguments of :class:`Distiller`: site, layers, warmup, noise_seed, data_preprocessor.

    Raises:
        ValueError: If there is no loss.
    """

    def __init__(self, student: dict | nn.Module, teacher: dict, distill_losses: dict[str, dict], **kwargs: Any) -> None:
        if not any((distill_losses or {}).values()):
            raise ValueError(
                "ConfigurableDistiller expects at least one loss, distill_losses=dict(kd=dict(type='dskd_mm.KDLoss')), but got "
                f'{distill_losses!r}.'
            )
        super().__init__(student, teacher, distill_losses=distill_losses, **kwargs)
