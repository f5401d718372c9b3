"""What a method is given of a batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from dskd_mm.structures import ModelOutputs, Target

HeadLoss = Callable[[Sequence[Tensor]], Tensor]


@dataclass
class BatchOutputs:
    """What both models made of a batch.

    Attributes:
        student (ModelOutputs): The student's features and logits, in the graph.
        teacher (ModelOutputs, optional): The teacher's, resized to the student's resolutions, if the teacher runs.
        target (Target, optional): The annotations, if the site has a linear classifier.
        head_loss (Callable): Loss of the teacher's own head on maps (a mean over the batch), if it has no linear classifier.
        losses (dict): The student's own losses.
    """

    student: ModelOutputs
    teacher: ModelOutputs | None
    target: Target | None
    head_loss: HeadLoss
    losses: dict[str, Any]
