"""Any detector: the levels of its neck, guided by the loss of the teacher's whole head."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from dskd_mm.features import find_module
from dskd_mm.registry import MODELS
from dskd_mm.sites.base import Site, returning_as_in_training
from dskd_mm.structures import TapRecord, TapSpec, Target
from dskd_mm.teacher import FrozenTeacher


@MODELS.register_module()
class NeckSite(Site):
    """The general case, for mmdet's detectors that end in no linear classifier of their own (the DETR family) and any other.

    The feature is what the neck gives to the head. What is wanted of it is told by the loss of the teacher's frozen head on the
    annotations, differentiated by autograd: one pass forward and back through that head in each sampling step, and one for the
    anchor. The teacher's backbone runs only with ``prior='teacher'``. There are no class logits, so the target is 'label' and
    the losses 'virtual' and 'logit' are left out.

    Args:
        channels (int, optional): Channels of the student's neck. Defaults to None: read off its ``out_channels``.
        teacher_channels (int, optional): The same of the teacher. Defaults to None.
        vectors_per_image (int): How many locations of an image are hashed. Defaults to 256.
    """

    task = 'neck'
    part = 'neck'

    def __init__(self, channels: int | None = None, teacher_channels: int | None = None, vectors_per_image: int = 256) -> None:
        self.channels = channels
        self.teacher_channels = teacher_channels
        self.vectors_per_image = vectors_per_image

    def student_spec(self, model: nn.Module) -> TapSpec:
        """See :meth:`Site.student_spec`."""
        return self._spec(find_module(model, self.part, 'student'), self.channels, 'student')

    def teacher_spec(self, model: nn.Module | None, teacher: FrozenTeacher) -> TapSpec:
        """See :meth:`Site.teacher_spec`."""
        return self._spec(teacher.build_part(self.part), self.teacher_channels, 'teacher')

    def _spec(self, neck: nn.Module, channels: int | None, owner: str) -> TapSpec:
        if channels is None:
            channels = neck_channels(neck)
        if channels is None:
            argument = 'teacher_channels' if owner == 'teacher' else 'channels'
            raise ValueError(
                f"The {owner}'s neck ({type(neck).__name__}) is expected to tell its out_channels, one number for all levels, "
                f'but does not. Give it with site=dict({argument}=...).'
            )
        return TapSpec(
            part=self.part,
            classifiers=(),
            sigmoid=False,
            num_classes=0,
            features=(self.part,),
            io='output',
            channels=channels,
            index='all',
            num_levels=neck_levels(neck),
        )

    def target(self, record: TapRecord, data_samples: Sequence[Any], num_classes: int, sigmoid: bool) -> Target | None:
        """Return None: it is the head's own loss that knows what to do with annotations."""
        return None

    def run_teacher(
        self, teacher: FrozenTeacher, spec: TapSpec, inputs: Tensor, data_samples: Sequence[Any], student: TapRecord
    ) -> None:
        """Run the teacher up to its neck; see :meth:`Site.run_teacher`."""
        model: Any = teacher.model
        model.extract_feat(teacher.adapt(inputs))

    def head_loss(self, teacher: FrozenTeacher, maps: Sequence[Tensor], inputs: Tensor, data_samples: Sequence[Any]) -> Tensor:
        """Return the sum of the losses of the teacher's head on maps; see :meth:`Site.head_loss`."""
        model: Any = teacher.model
        parts = [model, *(part for name, part in model.named_children() if name not in ('backbone', self.part))]
        # All that a detector does with its features lies behind extract_feat, in every family alike.
        model.extract_feat = lambda *args, **kwargs: tuple(maps)
        try:
            with returning_as_in_training(*parts):
                losses = model.loss(inputs, list(data_samples))
        finally:
            del model.extract_feat
        return model.parse_losses(losses)[0]


def neck_channels(neck: nn.Module) -> int | None:
    """Return the channels that all outputs of a neck have, by its own word or its output convolutions."""
    told: Any = getattr(neck, 'out_channels', None)
    if isinstance(told, int):
        return told
    if isinstance(told, Sequence) and len(set(told)) == 1:
        return int(told[0])
    convolutions = [module for module in neck.modules() if isinstance(module, nn.Conv2d)]
    widths = {module.out_channels for module in convolutions}
    return widths.pop() if len(widths) == 1 else None


def neck_levels(neck: nn.Module) -> int | None:
    """Return the number of levels of a neck, None if it does not tell."""
    told: Any = getattr(neck, 'num_outs', None)
    convolutions: Any = getattr(neck, 'convs', None)
    if told is None and isinstance(convolutions, nn.ModuleList):  # ChannelMapper
        extra: Any = getattr(neck, 'extra_convs', None)
        told = len(convolutions) + len(extra or ())
    return told
