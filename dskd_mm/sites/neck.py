"""Any model: what its head gets, guided by the loss of the teacher's whole head."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor, nn

from dskd_mm.features import find_module, find_tapped
from dskd_mm.registry import MODELS
from dskd_mm.sites.base import Site, returning_as_in_training
from dskd_mm.structures import TapRecord, TapSpec, Target
from dskd_mm.teacher import FrozenTeacher

AT_ANOTHER_LAYER = (
    "Name a layer of maps with layers=dict(maps=dict(student=dict(path='backbone...'), teacher=...)) and compare it by "
    "distill_losses=dict(fitnet=dict(type='dskd_mm.FitNetLoss', on='maps')) of a ConfigurableDistiller."
)
"""What is left where a head takes neither maps nor vectors."""


@MODELS.register_module()
class NeckSite(Site):
    """The general case, for models that end in no linear classifier of their own and any other.

    That is the DETR family, Mask2Former, Segmenter, heads for several tasks; of mmdet, mmsegmentation and mmpretrain alike.
    The feature is what the neck gives to the head, or the backbone where there is no neck; its levels may differ in width. What
    is wanted of it is told by the loss of the teacher's frozen head on the annotations, differentiated by autograd: one pass
    forward and back through that head in each sampling step, and one for the anchor. A head that matches queries with objects
    does so there, too. The teacher's backbone runs only with ``prior='teacher'``. There are no class logits, so the target is
    'label' and the losses 'virtual' and 'logit' are left out. With ``target='soft'`` the classes and boxes that the head of a
    dense detector makes of the teacher's own feature are wanted instead.

    Args:
        channels (int | Sequence[int], optional): Channels of what the student's head gets, one number or one for each level.
            Defaults to None: read off the neck's ``out_channels``, or found by a pass on the meta device.
        teacher_channels (int | Sequence[int], optional): The same of the teacher. Defaults to None.
        vectors_per_image (int): How many locations of an image are hashed. Defaults to 256.
    """

    task = 'neck'

    def __init__(
        self,
        channels: int | Sequence[int] | None = None,
        teacher_channels: int | Sequence[int] | None = None,
        vectors_per_image: int = 256,
    ) -> None:
        self.channels = channels
        self.teacher_channels = teacher_channels
        self.vectors_per_image = vectors_per_image
        self._head_takes_vectors = False

    def student_spec(self, model: nn.Module) -> TapSpec:
        """See :meth:`Site.student_spec`."""
        part = 'backbone' if getattr(model, 'neck', None) is None else 'neck'
        return self._spec(part, find_module(model, part, 'student'), lambda: model, self.channels, 'student')

    def teacher_spec(self, model: nn.Module | None, teacher: FrozenTeacher) -> TapSpec:
        """See :meth:`Site.teacher_spec`."""
        part = 'neck' if teacher.config.get('neck') else 'backbone'
        module = teacher.build_part(part) if model is None else model.get_submodule(part)
        build = teacher.build_model if model is None else lambda: model
        spec = self._spec(part, module, build, self.teacher_channels, 'teacher')
        self._head_takes_vectors = not spec.is_map
        return spec

    def _spec(
        self, part: str, module: nn.Module, build: Callable[[], nn.Module], given: int | Sequence[int] | None, owner: str
    ) -> TapSpec:
        channels, levels, is_map = told_channels(module) if given is None else given, told_levels(module), True
        if channels is None:
            argument = 'teacher_channels' if owner == 'teacher' else 'channels'
            tap = {part: dict(path=part, index='all')}
            shapes = find_tapped(build(), tap, owner, f'site=dict({argument}=...)')[part]
            ranks = {len(shape) for shape in shapes}
            if ranks not in ({2}, {4}):
                raise ValueError(
                    f"The {owner}'s {part} ({type(module).__name__}) is expected to give its head maps (B, C, H, W) or vectors "
                    f'(B, C), but for two images it gives the shapes {shapes}. {AT_ANOTHER_LAYER}'
                )
            channels, levels, is_map = [shape[1] for shape in shapes], len(shapes), ranks == {4}
        if not isinstance(channels, int):
            levels = len(channels)
            channels = channels[0] if len(set(channels)) == 1 else tuple(int(width) for width in channels)
        return TapSpec(
            part=part,
            classifiers=(),
            sigmoid=False,
            num_classes=0,
            features=(part,),
            io='output',
            channels=channels,
            index='all',
            is_map=is_map,
            num_levels=levels,
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
        parts = [model, *(part for name, part in model.named_children() if name not in ('backbone', 'neck'))]
        given = tuple(level.flatten(1) for level in maps) if self._head_takes_vectors else tuple(maps)
        # All that a model does with its features lies behind extract_feat, in every family alike.
        model.extract_feat = lambda *args, **kwargs: given
        try:
            with returning_as_in_training(*parts):
                losses = model.loss(inputs, list(data_samples))
        finally:
            del model.extract_feat
        return model.parse_losses(losses)[0]


def told_channels(neck: nn.Module) -> int | Sequence[int] | None:
    """Return the channels of all outputs of a neck, or of each, by its own word."""
    told: Any = getattr(neck, 'out_channels', None)
    is_told = isinstance(told, int) or (isinstance(told, Sequence) and all(isinstance(width, int) for width in told))
    return told if is_told else None


def told_levels(neck: nn.Module) -> int | None:
    """Return the number of levels of a neck, None if it does not tell."""
    told: Any = getattr(neck, 'num_outs', None)
    convolutions: Any = getattr(neck, 'convs', None)
    if told is None and isinstance(convolutions, nn.ModuleList):  # ChannelMapper
        extra: Any = getattr(neck, 'extra_convs', None)
        told = len(convolutions) + len(extra or ())
    return told
