"""What the losses have in common that compare a student with its teacher: any distiller takes them by config."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dskd_mm.features import ChannelAlign, Channels, align_levels, match_levels, per_width
from dskd_mm.structures import ModelOutputs, TapSpec, Target


class DistillLoss(nn.Module):
    """Base of the losses that compare a student with its teacher.

    A distiller binds a loss to both models once (:meth:`bind`), and gives it what they made of a batch in every step
    (:meth:`compare_outputs`). ``forward`` compares tensors, and is where ``loss_weight`` is applied.

    Args:
        loss_weight (float): What the loss is multiplied with. Defaults to 1.

    Raises:
        ValueError: If the weight is negative.
    """

    def __init__(self, loss_weight: float = 1.0) -> None:
        super().__init__()
        self.loss_weight = check_weight(self, loss_weight)

    @classmethod
    def arguments_for(cls, config: Mapping[str, Any], student: TapSpec, teacher: TapSpec, name: str) -> dict[str, Any]:
        """Return the arguments that follow from the two models, such as channels; those of the config go before them.

        Args:
            config (Mapping): The config of the loss.
            student (TapSpec): Where the student is tapped.
            teacher (TapSpec): Where the teacher is tapped.
            name (str): What the loss is called in messages.
        """
        return {}

    def bind(self, student: TapSpec, teacher: TapSpec, name: str) -> None:
        """Remember what is compared of the two models, and refuse a pair that the loss is not defined for.

        Args:
            student (TapSpec): Where the student is tapped.
            teacher (TapSpec): Where the teacher is tapped.
            name (str): What the loss is called in messages.

        Raises:
            ValueError: If the loss reads what there is not, or is not defined for it.
        """

    @abstractmethod
    def compare_outputs(
        self, student: ModelOutputs, teacher: ModelOutputs, target: Target | None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Compare what two models made of a batch, at what :meth:`bind` was told.

        Args:
            student (ModelOutputs): The student's, in the graph.
            teacher (ModelOutputs): The teacher's.
            target (Target, optional): The annotations, where there is a linear classifier.
            generator (torch.Generator, optional): Where a random choice comes from. Defaults to None: torch's own.

        Returns:
            Tensor: A scalar, multiplied by ``loss_weight``.
        """


class LogitLoss(DistillLoss):
    """Base of the losses on class logits.

    Args:
        loss_weight (float): What the loss is multiplied with. Defaults to 1.

    Raises:
        ValueError: If the weight is negative.
    """

    def __init__(self, loss_weight: float = 1.0) -> None:
        super().__init__(loss_weight)
        self.sigmoid = False

    def bind(self, student: TapSpec, teacher: TapSpec, name: str) -> None:
        """See :meth:`DistillLoss.bind`."""
        if not teacher.classifiers:
            raise ValueError(f'{name} ({type(self).__name__}) reads class logits, but this site has no linear classifier.')
        self.check(teacher.num_classes, teacher.sigmoid)
        self.sigmoid = teacher.sigmoid

    def compare_outputs(
        self, student: ModelOutputs, teacher: ModelOutputs, target: Target | None, generator: torch.Generator | None = None
    ) -> Tensor:
        """See :meth:`DistillLoss.compare_outputs`."""
        return self(student.logits, teacher.logits, target, self.sigmoid)

    def check(self, num_classes: int, sigmoid: bool) -> None:
        """Refuse a classifier that the loss is not defined for: a distiller asks when it is built.

        Args:
            num_classes (int): Number of classes K.
            sigmoid (bool): Whether they are independent instead of exclusive.

        Raises:
            ValueError: If the loss is not defined for it; none is refused by default.
        """
        return None

    @abstractmethod
    def forward(self, student: Tensor, teacher: Tensor, label: Target, sigmoid: bool = False) -> Tensor:
        """Compare two sets of logits.

        Args:
            student (Tensor): The student's, in the graph, (B, K) for images or (B, K, M) for M predictions an image.
            teacher (Tensor): The teacher's, of the same shape.
            label (Target): The annotations at their resolution: which class is the true one, and what weight each prediction
                has.
            sigmoid (bool): Whether classes are independent instead of exclusive. Defaults to False.

        Returns:
            Tensor: A scalar, multiplied by ``loss_weight``; 0, and still in the graph, if no prediction counts.
        """


class FeatureLoss(DistillLoss):
    """Base of the losses on feature maps. Subclasses say in :meth:`compare` what they ask of one level.

    Student and teacher are compared as they are, so their channels must be equal or not matter; see
    :class:`AlignedFeatureLoss`.

    Args:
        on (str): What is compared: 'feature' for the site's feature, 'logits', or the name of one of the distiller's
            ``layers``. Defaults to 'feature'.
        loss_weight (float): What the loss is multiplied with. Defaults to 1.

    Raises:
        ValueError: If the weight is negative.
    """

    needs_map: bool = False
    """Whether the loss says nothing about vectors, maps (B, C, 1, 1) of one location."""

    def __init__(self, on: str = 'feature', loss_weight: float = 1.0) -> None:
        super().__init__(loss_weight)
        self.on = on

    def bind(self, student: TapSpec, teacher: TapSpec, name: str) -> None:
        """See :meth:`DistillLoss.bind`."""
        self.check(student.describe(self.on, f'{name} ({type(self).__name__})').is_map)

    def compare_outputs(
        self, student: ModelOutputs, teacher: ModelOutputs, target: Target | None, generator: torch.Generator | None = None
    ) -> Tensor:
        """See :meth:`DistillLoss.compare_outputs`."""
        maps = student.maps(self.on)
        return self(maps, match_levels(teacher.maps(self.on), maps), generator)

    def check(self, is_map: bool) -> None:
        """Refuse vectors where the loss needs maps: a distiller asks when it is built, as far as it knows.

        Args:
            is_map (bool): Whether there is a level of more than one location.

        Raises:
            ValueError: If not, and the loss needs one.
        """
        if self.needs_map and not is_map:
            raise ValueError(
                f'{type(self).__name__} compares the locations of maps (B, C, H, W), but {self.on!r} has only one, a vector: '
                'the loss would be 0 whatever the student does. Read a layer before the pooling (on=..., see layers), or take '
                'a loss that compares vectors: FitNetLoss, PKDLoss, KDLoss.'
            )

    def prepare(self, student: Sequence[Tensor], generator: torch.Generator | None = None) -> list[Tensor]:
        """Return what of the student is compared with the teacher: its maps as they are, unless a subclass says otherwise.

        Args:
            student (Sequence[Tensor]): The student's maps, (B, C_s, H, W) a level.
            generator (torch.Generator, optional): Where a random choice comes from. Defaults to None: torch's own.

        Returns:
            list[Tensor]: As many maps of the same sizes.
        """
        return list(student)

    @abstractmethod
    def compare(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Return the loss of one level.

        Args:
            student (Tensor): What :meth:`prepare` made of the student's map, (B, C, H, W), float32, in the graph. B may be 0.
            teacher (Tensor): The teacher's, of the same height and width, float32.

        Returns:
            Tensor: A scalar; 0, and still in the graph, if B is 0.
        """

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor], generator: torch.Generator | None = None) -> Tensor:
        """Compare two pyramids.

        Args:
            student (Sequence[Tensor]): The student's maps, (B, C_s, H, W) a level, in the graph.
            teacher (Sequence[Tensor]): The teacher's, (B, C_t, H, W), of the same sizes.
            generator (torch.Generator, optional): Where a random choice comes from. Defaults to None: torch's own.

        Returns:
            Tensor: A scalar, summed over the levels and multiplied by ``loss_weight``.

        Raises:
            ValueError: If there are only vectors, and the loss needs maps.
        """
        # The top of a pyramid may well have a single location.
        self.check(any(level.shape[2] * level.shape[3] > 1 for level in student))
        prepared = self.prepare(student, generator)
        levels = [self.compare(ours.float(), theirs.float()) for ours, theirs in zip(prepared, teacher, strict=True)]
        return self.loss_weight * sum(levels[1:], levels[0])


class AlignedFeatureLoss(FeatureLoss):
    """Base of the losses that map the student's channels to the teacher's first, at all levels of a width by the same layer.

    Args:
        student_channels (int | tuple[int, ...]): Channels of the student, or of each level; the distiller fills them in.
        teacher_channels (int | tuple[int, ...]): Channels of the teacher, likewise.
        align (dict, optional): Arguments of :class:`~dskd_mm.features.ChannelAlign`. Defaults to None: :attr:`default_align`.
        kwargs: Arguments of :class:`FeatureLoss`: on, loss_weight.

    Raises:
        ValueError: If the alignment cannot be built.
    """

    default_align: ClassVar[Mapping[str, Any] | None] = None
    """The alignment where none is given. None for a 1x1 convolution without a norm, and that only if the channels differ."""

    def __init__(
        self, student_channels: Channels, teacher_channels: Channels, align: dict | None = None, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        given = self.default_align if align is None else align

        def make(own: int, theirs: int) -> nn.Module:
            config = dict(kind='identity') if own == theirs else dict(norm=None)
            return ChannelAlign(own, theirs, **(config if given is None else given))

        self.align = per_width(make, own=student_channels, theirs=teacher_channels)

    @classmethod
    def arguments_for(cls, config: Mapping[str, Any], student: TapSpec, teacher: TapSpec, name: str) -> dict[str, Any]:
        """Return the channels of both; see :meth:`DistillLoss.arguments_for`."""
        on = config.get('on', 'feature')
        reader = f'{name} ({cls.__name__})'
        channels = student.describe(on, reader).channels, teacher.describe(on, reader).channels
        return dict(zip(('student_channels', 'teacher_channels'), channels, strict=True))

    def prepare(self, student: Sequence[Tensor], generator: torch.Generator | None = None) -> list[Tensor]:
        """Return the student's maps with the teacher's channels, (B, C_t, H, W) a level; see :meth:`FeatureLoss.prepare`."""
        pyramid, packed = align_levels(self.align, student)
        return pyramid.unpack(packed)


def check_weight(owner: nn.Module | str, weight: float) -> float:
    """Return a loss's weight, if it can be one.

    Raises:
        ValueError: If it is negative.
    """
    if weight < 0:
        name = owner if isinstance(owner, str) else type(owner).__name__
        raise ValueError(f'loss_weight of {name} must not be negative, but got {weight}.')
    return weight


def check_temperature(owner: nn.Module | str, temperature: float) -> float:
    """Return a temperature, if it can be one.

    Raises:
        ValueError: If it is not positive.
    """
    if temperature <= 0:
        name = owner if isinstance(owner, str) else type(owner).__name__
        raise ValueError(f'temperature of {name} must be positive, but got {temperature}.')
    return temperature
