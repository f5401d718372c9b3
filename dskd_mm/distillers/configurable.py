"""Any losses between a student and its teacher: the everyday baselines by config."""

from typing import Any

from torch import nn

from dskd_mm.distillers.base import Distiller
from dskd_mm.registry import MODELS


@MODELS.register_module()
class ConfigurableDistiller(Distiller):
    """Adds to the student's own losses those of ``distill_losses`` and nothing else: KD, DKD, DIST, FitNet, AT, CWD, PKD, MGD.

    .. code-block:: python

        model = dict(
            type='dskd_mm.ConfigurableDistiller',
            student=_base_.model,
            teacher=dict(config=..., checkpoint=...),
            distill_losses=dict(kd=dict(type='dskd_mm.KDLoss', temperature=4)),
        )

    For the levels of a detector's neck instead of its classifier's features: ``site=dict(type='dskd_mm.NeckSite')``.

    Args:
        student (dict | nn.Module): The student: a host's model.
        teacher (dict): ``dict(config=..., checkpoint=...)``, see :class:`~dskd_mm.teacher.FrozenTeacher`.
        distill_losses (dict[str, dict]): The losses by a name of your own; see :class:`Distiller`.
        kwargs: Further arguments of :class:`Distiller`: site, layers, noise_seed, data_preprocessor.

    Raises:
        ValueError: If there is no loss.
    """

    def __init__(self, student: dict | nn.Module, teacher: dict, distill_losses: dict[str, dict], **kwargs: Any) -> None:
        if not distill_losses:
            raise ValueError(
                "ConfigurableDistiller expects at least one loss, distill_losses=dict(kd=dict(type='dskd_mm.KDLoss')), but got "
                f'{distill_losses!r}.'
            )
        super().__init__(student, teacher, distill_losses=distill_losses, **kwargs)
