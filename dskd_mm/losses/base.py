"""What the losses have in common that compare a student with its teacher: any distiller takes them by config."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from dskd_mm.features import ChannelAlign, Pyramid, per_location
from dskd_mm.guidance import Target


class LogitLoss(nn.Module):
    """Base of the losses on class logits.

    Args:
        loss_weight (float): What the loss is multiplied with. Defaults to 1.

    Raises:
        ValueError: If the weight is negative.
    """

    def __init__(self, loss_weight: float = 1.0) -> None:
        super().__init__()
        self.loss_weight = check_weight(self, loss_weight)

    @abstractmethod
    def forward(self, student: Tensor, teacher: Tensor, label: Target, sigmoid: bool = False) -> Tensor:
        """Compare two sets of logits.

        Args:
            student (Tensor): The student's, in the graph, (B, K) for images or (B, K, M) for M predictions an image.
            teacher (Tensor): The teacher's, of the same shape.
            label (Target): The annotations at their resolution: which class is the true one, and what weight each prediction has.
            sigmoid (bool): Whether classes are independent instead of exclusive. Defaults to False.

        Returns:
            Tensor: A scalar, multiplied by ``loss_weight``; 0, and still in the graph, if no prediction counts.
        """


class FeatureLoss(nn.Module):
    """Base of the losses on feature maps. Subclasses say in :meth:`compare` what they ask of one level.

    The student's channels are mapped to the teacher's first, at all levels by the same layer.

    Args:
        student_channels (int): Channels of the student; the distiller fills them in.
        teacher_channels (int): Channels of the teacher, likewise.
        on (str): What is compared: 'feature' for the site's feature, 'logits', or the name of one of the distiller's ``layers``.
            Defaults to 'feature'.
        align (dict, optional): Arguments of :class:`~dskd_mm.features.ChannelAlign`. Defaults to None: :attr:`default_align`.
        loss_weight (float): What the loss is multiplied with. Defaults to 1.

    Raises:
        ValueError: If the weight is negative.
    """

    default_align: dict[str, Any] = {}
    """The alignment where none is given."""

    def __init__(
        self,
        student_channels: int,
        teacher_channels: int,
        on: str = 'feature',
        align: dict | None = None,
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.loss_weight = check_weight(self, loss_weight)
        self.on = on
        self.align = ChannelAlign(
            **{**dict(in_channels=student_channels, out_channels=teacher_channels), **self.default_align, **(align or {})}
        )

    @abstractmethod
    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The loss of one level.

        Args:
            student (Tensor): The student's aligned map, (B, C, H, W), float32, in the graph.
            teacher (Tensor): The teacher's, of the same shape, float32.

        Returns:
            Tensor: A scalar.
        """

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """Compare two pyramids.

        Args:
            student (Sequence[Tensor]): The student's maps, (B, C_s, H, W) a level, in the graph.
            teacher (Sequence[Tensor]): The teacher's, (B, C_t, H, W), of the same sizes.

        Returns:
            Tensor: A scalar, summed over the levels and multiplied by ``loss_weight``.
        """
        aligned = Pyramid.of(student).unpack(per_location(self.align, Pyramid.pack(student)).float())
        levels = [self.compare(ours, theirs.float()) for ours, theirs in zip(aligned, teacher, strict=True)]
        total = levels[0]
        for level in levels[1:]:
            total = total + level
        return self.loss_weight * total


def check_weight(owner: nn.Module, weight: float) -> float:
    """A loss's weight, if it can be one.

    Raises:
        ValueError: If it is negative.
    """
    if weight < 0:
        raise ValueError(f'loss_weight of {type(owner).__name__} must not be negative, but got {weight}.')
    return weight
