"""CrossKD: the student's feature in the rest of the teacher's detection head."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from torch import Tensor, nn

from dskd_mm.distillers.base import Distiller, HeadLoss
from dskd_mm.distillers.options import MethodOptions
from dskd_mm.features import ChannelAlign, match_moments, match_space
from dskd_mm.functional import probabilities
from dskd_mm.losses import BoxLoss, KDLoss, build_loss
from dskd_mm.registry import MODELS
from dskd_mm.sites import Site
from dskd_mm.sites.base import returning_as_in_training
from dskd_mm.structures import Layer, ModelOutputs, TapRecord, TapSpec, Target

TOWERS = dict(cls='cls_convs', box='reg_convs')
"""What mmdet's dense heads call the convolutions before the layers that predict classes and boxes."""


@dataclass(kw_only=True)
class CrossKDOptions(MethodOptions):
    """Options of :class:`CrossKDDistiller`.

    Attributes:
        teacher_layers (int): How many convolutions of each of the teacher's towers the student's feature goes through, before
            the layer that predicts. Defaults to 1 (of towers of four, the feature is that after the student's third), and to 0
            where a tower has a single one.
        match_moments (bool): Whether each channel of the student's feature is brought to the mean and deviation that it has in
            the teacher's, level by level, as in the authors' code. Defaults to True.
        box (dict): Arguments of :class:`~dskd_mm.losses.BoxLoss`. Defaults to none.
        loss_weights (dict): Weights of 'cls' and 'box'. A weight of 0 skips the work, too. Those not named are 1.
    """

    losses: ClassVar[dict[str, float]] = dict(cls=1.0, box=1.0)

    teacher_layers: int | None = None
    match_moments: bool = True
    box: dict | None = None
    loss_weights: Any = None

    def check(self, owner: str, site: Site, student: TapSpec, teacher: TapSpec) -> None:
        """See :meth:`MethodOptions.check`."""
        super().check(owner, site, student, teacher)
        if site.task != 'dense_detection':
            raise ValueError(
                f'{owner} is defined for dense detectors and expects their site, but got {type(site).__name__}. Choose '
                'another method for this one: KD compares logits, and boxes, of every detector.'
            )


@MODELS.register_module()
class CrossKDDistiller(Distiller):
    r"""CrossKD: Cross-Head Knowledge Distillation for Object Detection (Wang et al., CVPR 2024, arXiv 2306.11369).

    The student's feature inside of its detection head goes through the rest of the teacher's frozen head. These *cross-head*
    predictions follow the teacher's own, while the student's own predictions follow the annotations alone.

    - ``loss_crosskd_cls``: their classes, by the quality focal loss with the exponent 1, over the number of foreground
      predictions;
    - ``loss_crosskd_box``: their boxes, at every prediction, weighted by the probability of the teacher's surest class.

    The feature is taken before its activation, is mapped to the teacher's width where that is another (a 1x1 convolution), gets
    the moments of the teacher's, and then the activation.

    Unlike in the authors' code (jbwang1997/CrossKD) boxes are compared as :class:`~dskd_mm.losses.BoxLoss` does, in the head's
    own encoding, where theirs are decoded and compared by GIoU; centerness is not distilled. As there, distributions of
    distances (GFL) are divided by the sum of the weights, other boxes by the number of foreground predictions.

    Heads need two towers, ``cls_convs`` and ``reg_convs``, that all levels share: RetinaNet, FCOS, ATSS, GFL and their kin.

    Args:
        student (dict | nn.Module): The student: a dense detector of mmdet.
        teacher (dict): ``dict(config=..., checkpoint=...)``, see :class:`~dskd_mm.teacher.FrozenTeacher`.
        kwargs: Arguments of :class:`Distiller` and fields of :class:`CrossKDOptions`.

    Raises:
        ValueError: If the student is no dense detector, or a head has no such towers or fewer convolutions than named.
    """

    options_class = CrossKDOptions
    options: CrossKDOptions
    compares_with_teacher = True

    def __init__(self, student: dict | nn.Module, teacher: dict, **kwargs: Any) -> None:
        super().__init__(student, teacher, **kwargs)
        options, specs = self.options, (self.student_spec, self.teacher_spec)
        names = [name for name, weight in options.loss_weights.items() if weight]
        if not specs[0].boxes or specs[0].boxes != specs[1].boxes:
            names = [name for name in names if name != 'box']  # they cannot be compared
        heads = self.student.get_submodule(specs[0].part), self.teacher.build_part(specs[1].part)
        own, theirs = (
            {name: find_layer(head, spec.part, TOWERS[name], options.teacher_layers, owner) for name in names}
            for head, spec, owner in zip(heads, specs, ('student', 'teacher'), strict=True)
        )
        self.own_layers, self.their_layers = own, theirs
        self.student_spec = replace(specs[0], layers={**specs[0].layers, **{f'crosskd_{k}': v for k, v in own.items()}})
        self.teacher_spec = replace(specs[1], layers={**specs[1].layers, **{f'crosskd_{k}': v for k, v in theirs.items()}})
        self.imitation: Any = build_loss('loss_weights.cls', dict(type=KDLoss, temperature=1.0), *specs)
        self.box_imitation: Any = None
        if 'box' in names:
            self.box_imitation = build_loss('box', dict(type=BoxLoss, **(options.box or {})), *specs)
        self.align = nn.ModuleDict()
        for name in names:
            inner, outer = (int(side[name].channels) for side in (own, theirs))  # type: ignore[arg-type]
            kind = 'identity' if inner == outer else 'conv'
            self.align[name] = ChannelAlign(inner, outer, kind=kind, norm=None)

    def distill(self, student: ModelOutputs, teacher: Any, target: Any, head_loss: HeadLoss) -> dict[str, Tensor]:
        """See :meth:`Distiller.distill`."""
        weights, losses = self.options.loss_weights, {}
        crossed = self.cross(student, teacher)
        if 'cls' in self.align:
            losses['loss_crosskd_cls'] = weights['cls'] * self.imitation.compare_outputs(crossed, teacher, target)
        if 'box' in self.align:
            losses['loss_crosskd_box'] = weights['box'] * self._compare_boxes(crossed, teacher, target)
        return losses

    def cross(self, student: ModelOutputs, teacher: ModelOutputs) -> ModelOutputs:
        """Return what the rest of the teacher's head makes of the student's features."""
        model: Any = self.teacher.require_model()
        head, spec = model.get_submodule(self.teacher_spec.part), replace(self.teacher_spec, layers={})
        with ExitStack() as stack:
            record = stack.enter_context(TapRecord(model, spec, 'teacher'))
            stack.enter_context(self.teacher.precision())
            stack.enter_context(returning_as_in_training(head))
            for name in self.align:
                maps = self._bring_over(name, student.layers[f'crosskd_{name}'], teacher.layers[f'crosskd_{name}'])
                stack.enter_context(replaced_output(model.get_submodule(self.their_layers[name].path), maps))
            # What comes before is replaced: one location of nothing is enough there, and costs nothing.
            width = head.cls_convs[0].in_channels
            head([level.new_zeros(len(level), width, 1, 1) for level in student.features])
            return ModelOutputs(record.features, record.logits, record.boxes, num_priors=spec.num_priors)

    def _bring_over(self, name: str, ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> list[Tensor]:
        """Return the student's features, (B, C, H, W) a level, in the teacher's width and with its moments."""
        found = []
        for level, like in zip(ours, theirs, strict=True):
            aligned = self.align[name](level).float()
            if self.options.match_moments:
                like = match_space(like, level.shape[2:]).flatten(2)
                aligned = match_moments(aligned.flatten(2), like).unflatten(2, level.shape[2:])
            found.append(aligned)
        return found

    def _compare_boxes(self, crossed: ModelOutputs, teacher: ModelOutputs, target: Target) -> Tensor:
        """Return how far boxes are from the teacher's, weighted by how sure it is that something is there."""
        probability = probabilities(teacher.logits, self.teacher_spec.sigmoid)
        sure = replace(target, probability=probability).foreground.amax(dim=1)
        return self.box_imitation(crossed.boxes, teacher.boxes, target, self.box_imitation.kind, sure)


def find_layer(head: Any, part: str, tower: str, teacher_layers: int | None, owner: str) -> Layer:
    """Return where a feature leaves a student's tower and enters a teacher's: before an activation.

    Args:
        head (nn.Module): A dense head of mmdet.
        part (str): Its path in the model.
        tower (str): The name of the tower.
        teacher_layers (int, optional): How many convolutions follow; None for one, if there are several.
        owner (str): Whose head it is, for the error.

    Raises:
        ValueError: If the head has no such tower, or one of fewer convolutions.
    """
    blocks: Any = getattr(head, tower, None)
    # ModuleLists of ModuleLists (RTMDet) are towers of each level, Sequentials (YOLOF) have no elements in between.
    if not isinstance(blocks, nn.ModuleList) or not len(blocks) or not all(hasattr(block, 'with_norm') for block in blocks):
        raise ValueError(
            f"CrossKDDistiller expects a head with towers 'cls_convs' and 'reg_convs' that all levels share, as RetinaNet's, "
            f"FCOS's, ATSS's and GFL's, but {tower!r} of the {owner}'s {type(head).__name__} is no list of convolutions. "
            'Choose KD (--method kd) or DSKD, which compare logits and boxes of every head.'
        )
    following = min(1, len(blocks) - 1) if teacher_layers is None else teacher_layers
    if not 0 <= following < len(blocks):
        raise ValueError(
            f"teacher_layers of CrossKDDistiller must be 0 to {len(blocks) - 1}, for {tower!r} of the {owner}'s "
            f'{type(head).__name__} has {len(blocks)} convolutions, but got {teacher_layers}.'
        )
    index = len(blocks) - following - 1
    block: Any = blocks[index]
    inner = block.norm_name if block.with_norm else 'conv'
    return Layer(path=f'{part}.{tower}.{index}.{inner}', channels=block.out_channels, index='all')


@contextmanager
def replaced_output(module: nn.Module, outputs: Sequence[Tensor]) -> Iterator[None]:
    """Let a module return other tensors than its own, one in each call."""
    waiting = iter(outputs)
    handle = module.register_forward_hook(lambda module, args, output: next(waiting))
    try:
        yield
    finally:
        handle.remove()
