"""Dense (single-stage) detection: the input of the last classification convolution, at all levels of the pyramid."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from dskd_mm.distributed import mean_over_ranks
from dskd_mm.features import find_module
from dskd_mm.registry import MODELS
from dskd_mm.sites.annotations import check_objects, read_assignment
from dskd_mm.sites.base import Site, calling_the_head, returning_as_in_training
from dskd_mm.structures import BoxEncoding, TapRecord, TapSpec, Target
from dskd_mm.teacher import FrozenTeacher

CLASS_LOSSES = ('loss_cls', 'initial_loss_cls')
"""The losses of a head that are told what its predictions should say, one of them in each step."""


@MODELS.register_module()
class DenseDetectionSite(Site):
    """The site of mmdet's ``SingleStageDetector``: RetinaNet, FCOS, ATSS, GFL, RTMDet and their relatives.

    The classifier is the head's convolution with one output per class and anchor, shared by all levels or one for each. Targets
    are those of the student's own label assignment: they are read off the arguments of its classification loss, so nothing is
    assigned a second time, and quality-aware heads (GFL, RTMDet) keep their soft scores.

    Args:
        vectors_per_image (int): How many locations of an image are hashed, chosen over all levels with the same chance for
            every class that occurs, background included. Defaults to 256.
        focus (float): Exponent of the quality focal loss by which predictions are compared, see
            :attr:`~dskd_mm.structures.Target.focus`. Defaults to 1, as in CrossKD (Wang et al. 2024).
        classifier (str | Sequence[str], optional): Path of the student's classification layer, or one for each level. Defaults
            to None: it is found.
        teacher_classifier (str | Sequence[str], optional): The same of the teacher. Defaults to None.
    """

    task = 'dense_detection'
    norm = 'GN'  # few images on a device, and levels of a few locations: no batch statistics
    part = 'bbox_head'
    counts_objects = True

    def __init__(
        self,
        vectors_per_image: int = 256,
        focus: float = 1.0,
        classifier: str | Sequence[str] | None = None,
        teacher_classifier: str | Sequence[str] | None = None,
    ) -> None:
        self.vectors_per_image = vectors_per_image
        self.focus = focus
        self.classifier = classifier
        self.teacher_classifier = teacher_classifier

    def student_spec(self, model: nn.Module) -> TapSpec:
        """See :meth:`Site.student_spec`."""
        return self._spec(find_module(model, self.part, 'student'), self.classifier, 'student')

    def check(self, data_samples: Sequence[Any], spec: TapSpec) -> None:
        """Refuse labels of objects that the student does not know; see :meth:`Site.check`."""
        check_objects(data_samples, spec.num_labels)

    def teacher_spec(self, model: nn.Module | None, teacher: FrozenTeacher) -> TapSpec:
        """See :meth:`Site.teacher_spec`."""
        head = teacher.build_part(self.part) if model is None else model.get_submodule(self.part)
        spec = self._spec(head, self.teacher_classifier, 'teacher')
        # Boxes are in units of the anchor, the stride or the pixel, which are others in images of another size.
        return spec if teacher.input_size is None else replace(spec, boxes=None)

    def _spec(self, head: nn.Module, classifier: str | Sequence[str] | None, owner: str) -> TapSpec:
        priors: Any = getattr(head, 'prior_generator', None)
        classes = getattr(head, 'cls_out_channels', None)
        per_location = set(getattr(priors, 'num_base_priors', ()))
        if classes is None or len(per_location) != 1:
            raise ValueError(
                f"The {owner}'s {type(head).__name__} is expected to predict cls_out_channels classes for the same number of "
                f'priors at each location, but got {classes} classes and {sorted(per_location)} priors.'
            )
        num_priors = per_location.pop()
        if classifier is None:
            names = find_classifiers(head, classes * num_priors, owner)
        else:
            names = [classifier] if isinstance(classifier, str) else list(classifier)
            names = [name.removeprefix(f'{self.part}.') for name in names]
        layers: list[Any] = [find_module(head, name, f"{owner}'s head") for name in names]
        channels = {(getattr(layer, 'in_channels', None), getattr(layer, 'out_channels', None)) for layer in layers}
        if len(channels) != 1 or next(iter(channels))[1] != classes * num_priors:
            raise ValueError(
                f"The {owner}'s classification layers {names} are expected to be convolutions of equal width with "
                f'{num_priors} x {classes} outputs, but got (inputs, outputs) {sorted(channels, key=str)}. '
                'Name others in the site.'
            )
        paths = tuple(f'{self.part}.{name}' for name in names)
        normalized = bool(getattr(head, 'norm_on_bbox', False))
        return TapSpec(
            part=self.part,
            classifiers=paths,
            sigmoid=bool(getattr(head, 'use_sigmoid_cls', False)),
            num_classes=classes,
            features=paths,
            io='input',
            channels=int(layers[0].in_channels),
            is_dense=True,
            num_labels=int(getattr(head, 'num_classes', classes)),
            num_priors=num_priors,
            strides=tuple((int(w), int(h)) for w, h in priors.strides),
            # In its first epochs TOOD has another loss.
            calls={name: f'{self.part}.{name}' for name in CLASS_LOSSES if hasattr(head, name)},
            boxes=box_encoding(head),
            # Such a head predicts in units of the stride while it trains.
            box_scales=tuple(float(w) for w, _ in priors.strides) if normalized else (),
            # YOLOF adds objectness to its classes.
            logits_of=self.part if hasattr(head, 'object_pred') else None,
            logits_index=(0, 'all'),
            # VFNet refines the boxes that it returns first.
            box_index=2 if hasattr(head, 'loss_bbox_refine') else 1,
        )

    def run_teacher(
        self, teacher: FrozenTeacher, spec: TapSpec, inputs: Tensor, data_samples: Sequence[Any], student: TapRecord
    ) -> None:
        """See :meth:`Site.run_teacher`."""
        model: Any = teacher.model
        features = model.extract_feat(teacher.adapt(inputs))
        # mmdet's mode 'tensor' calls the head's forward past its hooks.
        with calling_the_head(self, model.bbox_head), returning_as_in_training(model.bbox_head):
            model.bbox_head(features)

    def target(self, record: TapRecord, data_samples: Sequence[Any], num_classes: int, sigmoid: bool) -> Target:
        """Return the student's own assignment as (B, K, M); background is all zeros for independent classes."""
        logits, num_priors = record.logits, record.spec.num_priors
        lengths = [level.shape[2] * level.shape[3] * num_priors for level in logits]
        labels, weight = read_assignment(record.calls(*CLASS_LOSSES), len(logits[0]), lengths, num_classes, type(self).__name__)
        avg_factor = self.avg_factor(labels, weight, sigmoid)
        return Target(labels, weight, avg_factor, background=not sigmoid, focus=self.focus if sigmoid else 0.0)

    def avg_factor(self, probability: Tensor, weight: Tensor, sigmoid: bool) -> Tensor:
        """Return the number of predictions that count, with independent classes of those for objects; see
        :meth:`Site.avg_factor`."""
        counted = (probability.amax(dim=1, keepdim=True) > 0) if sigmoid else torch.ones_like(weight)
        return mean_over_ranks((counted * (weight > 0)).sum().float())


def find_classifiers(head: nn.Module, outputs: int, owner: str) -> list[str]:
    """Return the names of a dense head's classification convolutions.

    Args:
        head (nn.Module): A dense head of mmdet.
        outputs (int): Classes times anchors.
        owner (str): Whose head it is, for the error.

    Returns:
        list[str]: One name if the levels share a layer (``retina_cls``), else one for each level (``rtm_cls.0``, ...).

    Raises:
        ValueError: If there is none, or several.
    """

    def fits(module: nn.Module) -> bool:
        return isinstance(module, nn.Conv2d) and module.out_channels == outputs

    found: list[list[str]] = []
    for name, child in head.named_children():
        if 'cls' not in name:
            continue
        if fits(child):
            found.append([name])
        elif isinstance(child, nn.ModuleList) and len(child) and all(fits(module) for module in child):
            found.append([f'{name}.{i}' for i in range(len(child))])
    if len(found) == 1:
        return found[0]
    argument = 'teacher_classifier' if owner == 'teacher' else 'classifier'
    raise ValueError(
        f"The {owner}'s {type(head).__name__} is expected to hold one classification convolution of {outputs} outputs (or a "
        f"list of them, one per level) under a name with 'cls', but got "
        f"{found or [name for name, _ in head.named_children()]}. Name it with site=dict({argument}='bbox_head....')."
    )


def box_encoding(head: nn.Module) -> BoxEncoding | None:
    """Return how a head of mmdet encodes the boxes that it returns after the classes.

    Args:
        head (nn.Module): A dense head, or the box head of a two-stage detector.

    Returns:
        BoxEncoding, optional: None if it predicts none, has no single loss of them (RepPoints), or another coder.
    """
    coder: Any = getattr(head, 'bbox_coder', None)
    if not getattr(head, 'with_reg', True):
        return None  # Grid R-CNN finds boxes by points
    # RepPoints inherits the former, but learns by two others, and returns points while it trains.
    if not hasattr(head, 'loss_bbox') or hasattr(head, 'loss_bbox_init'):
        return None
    if any(cls.__name__ == 'FoveaHead' for cls in type(head).__mro__):
        return BoxEncoding('delta')  # logarithms of distances
    largest: Any = getattr(head, 'reg_max', None)
    if largest is not None:
        return BoxEncoding('distribution', bins=largest + 1)
    kinds = {'DeltaXYWHBBoxCoder': 'delta', 'DistancePointBBoxCoder': 'distance'}
    kind = kinds.get(type(coder).__name__)
    if kind == 'delta' and not getattr(head, 'reg_class_agnostic', True):
        kind = 'class_delta'
    return None if kind is None else BoxEncoding(kind, tuple(getattr(coder, 'stds', ())))
