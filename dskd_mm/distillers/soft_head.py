"""The teacher's whole dense head as a soft target, for features at the neck."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dskd_mm.distributed import mean_over_ranks
from dskd_mm.functional import probabilities
from dskd_mm.losses import BoxLoss, KDLoss, build_loss
from dskd_mm.sites import DenseDetectionSite
from dskd_mm.sites.base import returning_as_in_training
from dskd_mm.structures import ModelOutputs, TapRecord, TapSpec, Target
from dskd_mm.teacher import FrozenTeacher


class SoftHead:
    """Tells how far what the teacher's frozen head makes of maps is from what it makes of the teacher's own.

    Classes are compared as CrossKD compares them (quality focal loss with the exponent 1, or KL for exclusive ones). Boxes
    are compared by :class:`~dskd_mm.losses.BoxLoss`, weighted by the probability of the teacher's surest class, where the head
    has any that can be compared. No annotation is asked.

    Args:
        teacher (FrozenTeacher): The teacher, a dense detector.
        name (str): Whose it is, for the error.

    Raises:
        ValueError: If the teacher is no dense detector.
    """

    def __init__(self, teacher: FrozenTeacher, name: str) -> None:
        self.teacher = teacher
        self.site = DenseDetectionSite()
        try:
            self.spec: TapSpec = self.site.teacher_spec(None, teacher)
        except ValueError as error:
            raise ValueError(
                f"{name} at the neck with target='soft' follows the classes and boxes of a dense head (RetinaNet, FCOS, ATSS, "
                f"GFL, RTMDet), but the teacher is a {teacher.config.type} without one that is known: set target='label', by "
                'which the loss of any head guides.'
            ) from error
        self.classes: Any = build_loss('target', dict(type=KDLoss, temperature=1.0), self.spec, self.spec)
        self.boxes: Any = build_loss('target', dict(type=BoxLoss), self.spec, self.spec) if self.spec.boxes else None

    def predict(self, maps: Sequence[Tensor]) -> ModelOutputs:
        """Return the head's logits and boxes of maps, (B, C, H, W) a level."""
        model = self.teacher.require_model()
        head: Any = model.get_submodule(self.spec.part)
        with TapRecord(model, self.spec, 'teacher') as record, self.teacher.precision(), returning_as_in_training(head):
            head(tuple(maps))
            return ModelOutputs([], record.logits, record.boxes, num_priors=self.spec.num_priors)

    def towards(self, features: Sequence[Tensor]) -> Callable[[Sequence[Tensor]], Tensor]:
        """Return the loss that tells how far predictions of maps are from those of the teacher's features.

        Args:
            features (Sequence[Tensor]): The teacher's, (B, C, H, W) a level.

        Returns:
            Callable: Maps the levels of other features, of those sizes, to a scalar, over the number of objects that the
            teacher sees.
        """
        with torch.no_grad():
            wanted = self.predict(features)
        sigmoid = self.spec.sigmoid
        target = Target(
            probabilities(wanted.logits, sigmoid), focus=self.site.focus if sigmoid else 0.0, background=not sigmoid
        )
        sure = target.foreground.amax(dim=1)
        target = replace(target, avg_factor=mean_over_ranks(sure.sum()))

        def loss(maps: Sequence[Tensor]) -> Tensor:
            found = self.predict(maps)
            distance = self.classes.compare_outputs(found, wanted, target)
            if self.boxes is not None:
                distance = distance + self.boxes(found.boxes, wanted.boxes, target, self.boxes.kind, sure)
            return distance

        return loss
