"""Two-stage detection: the input of the box head's last linear layer, on the student's sampled proposals."""

from collections.abc import Sequence
from inspect import signature
from typing import Any

from torch import Tensor, nn

from dskd_mm.features import find_module
from dskd_mm.registry import MODELS
from dskd_mm.sites.annotations import check_objects, read_assignment
from dskd_mm.sites.base import Site, calling_the_head
from dskd_mm.sites.dense_detection import box_encoding
from dskd_mm.structures import TapRecord, TapSpec, Target
from dskd_mm.teacher import FrozenTeacher

CONTEXT = dict(semantic_feat='semantic_head', glbctx_feat='glbctx_head')
"""What a head may be given beside the features and the proposals, and the part of it that makes that."""


@MODELS.register_module()
class TwoStageDetectionSite(Site):
    """The site of mmdet's ``TwoStageDetector``: Faster R-CNN, Cascade R-CNN, Mask R-CNN.

    The classifier is ``fc_cls`` of the box head, its feature one vector for each of the student's sampled proposals; targets
    are the labels of its sampler. A teacher that runs looks at the same proposals. Mask heads are left alone.

    Args:
        stage (int): Which stage of a cascade; a head of one stage has only that. Defaults to -1, the last.
        classifier (str): Name of the classification layer in the student's box head. Defaults to 'fc_cls'.
        teacher_classifier (str): The same of the teacher. Defaults to 'fc_cls'.
    """

    task = 'two_stage_detection'
    norm = 'BN'  # hundreds of proposals an image
    part = 'roi_head.bbox_head'

    def __init__(self, stage: int = -1, classifier: str = 'fc_cls', teacher_classifier: str = 'fc_cls') -> None:
        self.stage = stage
        self.classifier = classifier
        self.teacher_classifier = teacher_classifier

    def student_spec(self, model: nn.Module) -> TapSpec:
        """See :meth:`Site.student_spec`."""
        heads = find_module(model, self.part, 'student')
        roi_head: Any = model.roi_head
        others = set(signature(roi_head._bbox_forward).parameters) - {'stage', 'x', 'rois', *CONTEXT}
        if others:
            raise ValueError(
                f"The student's {type(roi_head).__name__} is expected to classify proposals by their features alone, but it "
                f'also takes {sorted(others)}.'
            )
        stage = self._stage(len(heads)) if isinstance(heads, nn.ModuleList) else None
        return box_head_spec(model.get_submodule(staged(self.part, stage)), stage, self.classifier, 'student')

    def check(self, data_samples: Sequence[Any], spec: TapSpec) -> None:
        """Refuse labels of objects that the student does not know; see :meth:`Site.check`."""
        check_objects(data_samples, spec.num_labels)

    def teacher_spec(self, model: nn.Module | None, teacher: FrozenTeacher) -> TapSpec:
        """See :meth:`Site.teacher_spec`."""
        config = teacher.part_config(self.part)
        stage = self._stage(len(config)) if isinstance(config, list) else None
        part = staged(self.part, stage)
        head = teacher.build_part(part) if model is None else model.get_submodule(part)
        return box_head_spec(head, stage, self.teacher_classifier, 'teacher')

    def _stage(self, num_stages: int) -> int:
        if not -num_stages <= self.stage < num_stages:
            raise ValueError(f'stage of {type(self).__name__} expects one of the {num_stages} stages, but got {self.stage}.')
        return self.stage % num_stages

    def target(self, record: TapRecord, data_samples: Sequence[Any], num_classes: int, sigmoid: bool) -> Target:
        """Return the labels of the sampled proposals, (N, K); the last class is background."""
        (logits,) = record.logits
        if len(logits):
            labels, weight = read_assignment(record.calls('loss'), len(logits), [1], num_classes, type(self).__name__)
        else:
            # Without any proposal mmdet calls no loss.
            labels, weight = logits.new_zeros(0, num_classes, 1), logits.new_zeros(0, 1, 1)
        labels, weight = labels[:, :, 0], weight[:, :, 0]
        background = record.spec.num_classes > record.spec.num_labels
        return Target(labels, weight, self.avg_factor(labels, weight, sigmoid), background=background)

    def run_teacher(
        self, teacher: FrozenTeacher, spec: TapSpec, inputs: Tensor, data_samples: Sequence[Any], student: TapRecord
    ) -> None:
        """Run the teacher's box head on the student's proposals; see :meth:`Site.run_teacher`."""
        model: Any = teacher.model
        calls = student.calls('extractor')
        if not calls:
            raise ValueError(
                f"The student's {spec.part!r} is expected to read proposals by {student.spec.calls['extractor']!r}, but did "
                'not call it.'
            )
        args, kwargs = calls[0]
        rois = args[1] if len(args) > 1 else kwargs['rois']
        features = model.extract_feat(teacher.adapt(inputs))
        rois = rois.detach()
        if teacher.input_size is not None:
            # The number of the image, and the corners, in the teacher's pixels. Offsets to proposals have no unit.
            height, width = (own / ours for own, ours in zip(teacher.size_of(inputs), inputs.shape[2:], strict=True))
            rois = rois * rois.new_tensor([1, width, height, width, height])
        with calling_the_head(self, model.roi_head):
            context = proposal_context(model.roi_head, features)
            model.roi_head._bbox_forward(*(() if spec.stage is None else (spec.stage,)), features, rois, **context)


def proposal_context(roi_head: Any, features: Sequence[Tensor]) -> dict[str, Tensor]:
    """Return what a head adds to the features of each proposal: HTC's map of semantics, and SCNet's view of the image."""
    parts = {name: getattr(roi_head, part, None) for name, part in CONTEXT.items()}
    return {name: part(features)[1] for name, part in parts.items() if part is not None}


def staged(path: str, stage: int | None) -> str:
    """Return the path of a module of one stage, of the only one without stages."""
    return path if stage is None else f'{path}.{stage}'


def box_head_spec(head: nn.Module, stage: int | None, classifier: str, owner: str) -> TapSpec:
    """Return where a box head is tapped.

    Raises:
        ValueError: If the classification layer is no linear layer.
    """
    part = staged(TwoStageDetectionSite.part, stage)
    layer: Any = find_module(head, classifier, f"{owner}'s box head")
    if not isinstance(layer, nn.Linear):
        raise ValueError(
            f"The {owner}'s classification layer '{part}.{classifier}' is expected to be linear, but it is {layer}. Name "
            'another one in the site.'
        )
    sigmoid = bool(getattr(getattr(head, 'loss_cls', None), 'use_sigmoid', False))
    num_labels = int(getattr(head, 'num_classes', layer.out_features - (not sigmoid)))
    # With SeesawLoss there is also an objectness: all that is background would be sent there.
    if layer.out_features - num_labels not in ((0, 1) if sigmoid else (1,)):
        raise ValueError(
            f"The {owner}'s '{part}.{classifier}' is expected to have an output for each of the {num_labels} classes and one "
            f'for the background, but got {layer.out_features} for its {type(head.loss_cls).__name__}. Give it another '
            'loss_cls.'
        )
    return TapSpec(
        part=part,
        classifiers=(f'{part}.{classifier}',),
        sigmoid=sigmoid,
        num_classes=layer.out_features,
        features=(f'{part}.{classifier}',),
        io='input',
        channels=layer.in_features,
        is_map=False,
        num_labels=num_labels,
        stage=stage,
        calls=dict(loss=f'{part}.loss_cls', extractor=staged('roi_head.bbox_roi_extractor', stage)),
        boxes=box_encoding(head),
    )
