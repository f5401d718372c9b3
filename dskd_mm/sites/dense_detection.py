"""Dense (single-stage) detection: the input of the last classification convolution, at all levels of the pyramid."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dskd_mm.distributed import mean_over_ranks
from dskd_mm.features import find_module
from dskd_mm.guidance import Target
from dskd_mm.registry import MODELS
from dskd_mm.sites.base import Observation, Port, Site, box_encoding, check_objects
from dskd_mm.teacher import FrozenTeacher


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
            :attr:`~dskd_mm.guidance.Target.focus`. Defaults to 1, as in CrossKD (Wang et al. 2024).
        classifier (str | Sequence[str], optional): Path of the student's classification layer, or one for each level. Defaults
            to None: it is found.
        teacher_classifier (str | Sequence[str], optional): The same of the teacher. Defaults to None.
    """

    part = 'bbox_head'
    norm = 'GN'  # few images on a device, and levels of a few locations: no batch statistics
    # No pooling averages the noise of locations out: from the middle of the schedule the denoised feature would be worse than
    # the student's own, and the virtual teacher with it.
    # The classifier is a 3x3 convolution with an output for each class and anchor, as wide as those that make the feature: all
    # over large maps, and for all classes, guidance would cost as much as the student. An image of COCO shows 3.5 classes on
    # average (Lin et al. 2014, section 5).
    defaults = dict(temperature=1.0, sampler=dict(start=0.1, scale=100.0), window=32, guided_classes=4)

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
        self.num_objects = 0

    def student_port(self, model: nn.Module) -> Port:
        """See :meth:`Site.student_port`."""
        head = find_module(model, self.part, 'student')
        port = self._port(head, self.classifier, 'student')
        self.num_objects = int(getattr(head, 'num_classes', port.num_classes))
        return port

    def check(self, data_samples: Sequence[Any], num_classes: int) -> None:
        """Refuse labels of objects that the student does not know; see :meth:`Site.check`."""
        check_objects(data_samples, self.num_objects)

    def teacher_port(self, model: nn.Module | None, teacher: FrozenTeacher) -> Port:
        """See :meth:`Site.teacher_port`."""
        head = teacher.build_part(self.part) if model is None else model.get_submodule(self.part)
        return self._port(head, self.teacher_classifier, 'teacher')

    def _port(self, head: nn.Module, classifier: str | Sequence[str] | None, owner: str) -> Port:
        priors: Any = getattr(head, 'prior_generator', None)
        classes = getattr(head, 'cls_out_channels', None)
        anchors = set(getattr(priors, 'num_base_priors', ()))
        if classes is None or len(anchors) != 1:
            raise ValueError(
                f"The {owner}'s {type(head).__name__} is expected to predict cls_out_channels classes for the same number of "
                f'priors at each location, but got {classes} classes and {sorted(anchors)} priors. Distil at the neck instead: '
                "site=dict(type='dskd_mm.NeckSite')."
            )
        count = anchors.pop()
        if classifier is None:
            names = find_classifiers(head, classes * count, owner)
        else:
            names = [classifier] if isinstance(classifier, str) else list(classifier)
            names = [name.removeprefix(f'{self.part}.') for name in names]
        layers: list[Any] = [find_module(head, name, f"{owner}'s head") for name in names]
        channels = {(getattr(layer, 'in_channels', None), getattr(layer, 'out_channels', None)) for layer in layers}
        if len(channels) != 1 or next(iter(channels))[1] != classes * count:
            raise ValueError(
                f"The {owner}'s classification layers {names} are expected to be convolutions of equal width with "
                f'{count} x {classes} outputs, but got (inputs, outputs) {sorted(channels, key=str)}. Name others in the site.'
            )
        paths = tuple(f'{self.part}.{name}' for name in names)
        normalized = bool(getattr(head, 'norm_on_bbox', False))
        return Port(
            part=self.part,
            classifiers=paths,
            sigmoid=bool(getattr(head, 'use_sigmoid_cls', False)),
            num_classes=classes,
            features=paths,
            io='input',
            channels=int(layers[0].in_channels),
            anchors=count,
            strides=tuple((int(w), int(h)) for w, h in priors.strides),
            calls=dict(loss=f'{self.part}.loss_cls'),
            boxes=box_encoding(head),
            # Such a head predicts in units of the stride while it trains, in pixels else.
            box_scales=tuple(float(w) for w, _ in priors.strides) if owner == 'student' and normalized else (),
        )

    def run_teacher(self, teacher: FrozenTeacher, inputs: Tensor, data_samples: Sequence[Any], student: Observation) -> None:
        """See :meth:`Site.run_teacher`."""
        model: Any = teacher.model
        # mmdet's mode 'tensor' calls the head's forward past its hooks.
        model.bbox_head(model.extract_feat(teacher.adapt(inputs)))

    def target(self, seen: Observation, data_samples: Sequence[Any], num_classes: int, sigmoid: bool) -> Target:
        """The student's own assignment as (B, K, M); background is all zeros for independent classes."""
        logits, anchors = seen.logits, seen.port.anchors
        lengths = [level.shape[2] * level.shape[3] * anchors for level in logits]
        labels, weight = assigned(seen.calls('loss'), len(logits[0]), lengths, num_classes, type(self).__name__)
        count = self.count(labels, weight, sigmoid)
        return Target(labels, weight, count, background=not sigmoid, focus=self.focus if sigmoid else 0.0)

    def count(self, probability: Tensor, weight: Tensor, sigmoid: bool) -> Tensor:
        """The number of predictions that count, with independent classes of those for objects; see :meth:`Site.count`."""
        counted = (probability.amax(dim=1, keepdim=True) > 0) if sigmoid else torch.ones_like(weight)
        return mean_over_ranks((counted * (weight > 0)).sum().float())


def find_classifiers(head: nn.Module, outputs: int, owner: str) -> list[str]:
    """Names of a dense head's classification convolutions.

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


def assigned(
    calls: Sequence[tuple[tuple[Any, ...], dict[str, Any]]], batch: int, lengths: Sequence[int], num_classes: int, site: str
) -> tuple[Tensor, Tensor]:
    """What a head's own classification loss was told.

    Args:
        calls (Sequence): Arguments of its calls: (prediction, target, weight), of each level or of all levels at once,
            flattened in the order (B, H, W, anchors). A target is a label of each prediction (for background K, or K - 1 where
            it has an output of its own), a pair of it and a quality score, or a distribution over classes.
        batch (int): Number of images B.
        lengths (Sequence[int]): Number of predictions at each level for an image.
        num_classes (int): Number of classes K.
        site (str): Name of the site, for the error.

    Returns:
        tuple[Tensor, Tensor]: Distribution (B, K, M) and weight (B, 1, M).

    Raises:
        ValueError: If the calls do not cover all predictions.
    """
    per_level = len(calls) == len(lengths)
    expected = [batch * length for length in lengths] if per_level else [batch * sum(lengths)]
    got = [args[0].shape[0] for args, _ in calls]
    if got != expected:
        raise ValueError(
            f'The classification loss of the student is expected to be called for all predictions, {expected}, but its calls '
            f'got {got} of them: the head selects or weighs them in a way of its own, which {site} does not know. Distil at '
            "the neck instead: site=dict(type='dskd_mm.NeckSite')."
        )
    labels: list[Tensor] = []
    scores: list[Tensor] = []
    weights: list[Tensor] = []
    for args, kwargs in calls:
        prediction = args[0]
        target = args[1] if len(args) > 1 else kwargs['target']
        weight = args[2] if len(args) > 2 else kwargs.get('weight')
        label, score = target if isinstance(target, (tuple, list)) else (target, None)
        weight = prediction.new_ones(len(prediction)) if weight is None else weight.reshape(len(prediction), -1).amax(dim=1)
        for found, value in ((labels, label), (scores, score), (weights, weight.float())):
            if value is not None:
                found += (value,) if per_level else value.split([batch * length for length in lengths])

    def joined(levels: Sequence[Tensor]) -> Tensor:
        return torch.cat([level.detach().reshape(batch, -1, *level.shape[1:]) for level in levels], dim=1)

    label = joined(labels)
    if label.ndim == 2:
        classes = torch.arange(num_classes, device=label.device)
        probability = (label[:, None] == classes[:, None]).float()
    else:
        probability = label.float()[:, :, :num_classes].transpose(1, 2).contiguous()
    if scores:
        probability = probability * joined(scores)[:, None].float()
    return probability, joined(weights)[:, None]
