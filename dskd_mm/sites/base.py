"""What a site has to tell a distiller, and what all sites share."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import cached_property
from types import TracebackType
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dskd_mm.distributed import mean_over_ranks
from dskd_mm.features import CallTap, FeatureTap, Pyramid, Tap, Window
from dskd_mm.features.window import gather
from dskd_mm.guidance import Target
from dskd_mm.guidance.classifier import fold_anchors
from dskd_mm.registry import MODELS
from dskd_mm.teacher import FrozenTeacher
from dskd_mm.utils.arguments import check_arguments

SITES_BY_MODEL = {
    'mmpretrain.BaseClassifier': 'dskd_mm.ClassificationSite',
    'mmseg.EncoderDecoder': 'dskd_mm.SegmentationSite',
    'mmdet.SingleStageDetector': 'dskd_mm.DenseDetectionSite',
    'mmdet.TwoStageDetector': 'dskd_mm.TwoStageDetectionSite',
    'mmdet.BaseDetector': 'dskd_mm.NeckSite',
}
"""Which site a student gets by itself, by the host and name of its nearest class that is listed."""


NECK_SITES = {
    name: 'dskd_mm.NeckSite' if name.startswith('mmdet.') else site for name, site in SITES_BY_MODEL.items()
}
"""The same for methods that distil a detector's feature pyramid instead of its classifier."""


@dataclass
class Layer:
    """A further module that losses may read, beside the site's own feature.

    Attributes:
        path (str): Dotted path of the module.
        channels (int): Channels of its maps.
        io (str): 'input' or 'output'. Defaults to 'output'.
        index (int | str, optional): Which element, if they come in a tuple; None for the last, 'all' for each as a level.
            Defaults to None.
    """

    path: str
    channels: int
    io: str = 'output'
    index: int | str | None = None


@dataclass(frozen=True)
class BoxEncoding:
    """How a head encodes the boxes that it returns after the classes. Equal ones can be compared number by number.

    Attributes:
        kind (str): 'delta', 'class_delta', 'distance' or 'distribution', see :class:`~dskd_mm.losses.BoxLoss`.
        stds (tuple[float, ...]): What offsets are divided by. Defaults to (): nothing.
    """

    kind: str
    stds: tuple[float, ...] = ()


@dataclass
class Port:
    """Where one model is tapped.

    Attributes:
        part (str): The part of the model that holds the classifier and has a config of its own, such as ``head``.
        classifiers (tuple[str, ...]): Dotted paths of the classification layers: one, shared by all levels of a pyramid, or one
            for each level. Empty where there is no linear classifier.
        sigmoid (bool): Whether its classes are independent.
        num_classes (int): Number of classes K, background included where the classifier has an output for it; 0 without a
            classifier.
        features (tuple[str, ...]): Dotted paths of the modules whose input or output is the feature: one, or one per level.
        io (str): 'input' or 'output'.
        channels (int): Channels of the feature.
        index (int | str, optional): Which element, if the feature comes in a tuple; None for the last, 'all' for each as a
            level. Defaults to None.
        is_map (bool): Whether it has height and width. Defaults to True.
        is_pooled (bool): Whether the classifier's own input is the average of the feature over its locations. Defaults to
            False.
        anchors (int): Predictions at each location. Defaults to 1.
        strides (tuple[tuple[int, int], ...]): Strides of the levels of a pyramid. Defaults to (), which means one map.
        calls (dict[str, str]): Modules whose arguments the site wants to see, by a name of its own. Defaults to none.
        boxes (BoxEncoding, optional): How :attr:`part` encodes the boxes that it returns beside classes. Defaults to None: it
            has none that could be compared.
        box_scales (tuple[float, ...]): What the boxes of each level are multiplied with to be in one unit. Defaults to ():
            nothing.
        layers (dict[str, Layer]): Further modules that the distiller's losses read, by a name of its own. Defaults to none.
    """

    part: str
    classifiers: tuple[str, ...]
    sigmoid: bool
    num_classes: int
    features: tuple[str, ...]
    io: str
    channels: int
    index: int | str | None = None
    is_map: bool = True
    is_pooled: bool = False
    anchors: int = 1
    strides: tuple[tuple[int, int], ...] = ()
    calls: dict[str, str] = field(default_factory=dict)
    boxes: BoxEncoding | None = None
    box_scales: tuple[float, ...] = ()
    layers: dict[str, Layer] = field(default_factory=dict)

    @property
    def is_pyramid(self) -> bool:
        """Whether the feature may have several levels."""
        return len(self.strides) > 1 or self.index == 'all'


class Observation:
    """A model's taps at a site, open during one forward pass.

    Args:
        model (nn.Module): The model.
        port (Port): Where to tap it.
        owner (str): How to call the model in errors.
    """

    def __init__(self, model: nn.Module, port: Port, owner: str) -> None:
        self.port = port
        self.owner = owner
        self.feature_taps = [FeatureTap(model, path, port.io, port.index, owner) for path in port.features]
        self.logits_taps = [FeatureTap(model, path, 'output', None, owner) for path in port.classifiers]
        self.call_taps = {name: CallTap(model, path, owner) for name, path in port.calls.items()}
        self.layer_taps = {
            name: FeatureTap(model, layer.path, layer.io, layer.index, owner) for name, layer in port.layers.items()
        }
        # Heads return (classes, boxes, ...), each a list of levels.
        self.box_taps = [FeatureTap(model, port.part, 'output', (1, 'all'), owner)] if port.boxes else []
        self._stack = ExitStack()

    def __enter__(self) -> 'Observation':
        taps: list[Tap] = [*self.feature_taps, *self.logits_taps, *self.box_taps]
        for tap in (*taps, *self.call_taps.values(), *self.layer_taps.values()):
            self._stack.enter_context(tap)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    @property
    def features(self) -> list[Tensor]:
        """The feature of each level, (B, C, H, W); vectors come with H = W = 1.

        Raises:
            ValueError: If a shape or the number of levels is not as expected.
        """
        return [as_map(tap, value, self.port.channels) for tap, value in self._values(self.feature_taps)]

    @property
    def layers(self) -> dict[str, list[Tensor]]:
        """The maps (B, C, H, W) of each of :attr:`Port.layers`: one, or one per level.

        Raises:
            ValueError: If a shape is not as expected.
        """
        found = {}
        for name, tap in self.layer_taps.items():
            layer = self.port.layers[name]
            values = tap.values if layer.index == 'all' else [tap.value]
            found[name] = [as_map(tap, value, layer.channels) for value in values]
        return found

    @property
    def logits(self) -> list[Tensor]:
        """The raw output of the classification layer at each level: (B, K), or (B, A*K, H, W)."""
        return [value for _, value in self._values(self.logits_taps)]

    @property
    def boxes(self) -> list[Tensor]:
        """The boxes at each level, (B, A*P, H, W), in the encoding of :attr:`Port.boxes`; none where that is None."""
        values = [value for _, value in self._values(self.box_taps)]
        if not self.port.box_scales:
            return values
        return [value * scale for value, scale in zip(values, self.port.box_scales, strict=True)]

    @property
    def captured(self) -> list[tuple[str, Tensor]]:
        """All tensors that the taps captured, each with the name of its tap and, if there are several, its number."""
        found: list[tuple[str, Tensor]] = []
        for tap in (*self.feature_taps, *self.layer_taps.values(), *self.logits_taps, *self.box_taps):
            values = tap.values
            names = [repr(tap)] if len(values) == 1 else [f'{tap!r}, number {i},' for i in range(len(values))]
            found += zip(names, values, strict=True)
        return found

    def calls(self, name: str) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        """Positional and named arguments of the calls of a module of :attr:`Port.calls`."""
        return self.call_taps[name].calls

    def _values(self, taps: Sequence[FeatureTap]) -> list[tuple[FeatureTap, Tensor]]:
        if not self.port.is_pyramid:
            return [(tap, tap.value) for tap in taps]
        found = [(tap, value) for tap in taps for value in tap.values]
        if taps and self.port.strides and len(found) != len(self.port.strides):
            raise ValueError(
                f'The {taps[0]!r} is expected to fire for each of the {len(self.port.strides)} levels of the pyramid, but got '
                f'{len(found)} tensors. Name the layer that all levels share, or one for each level, in the site.'
            )
        return found


@dataclass
class Observed:
    """What a model showed at a site in one forward pass.

    Attributes:
        features (list[Tensor]): The feature of each level, (B, C, H, W).
        logit_levels (list[Tensor]): The raw output of the classification layer at each level, (B, K) or (B, A*K, H, W); none
            without a linear classifier. Defaults to none.
        box_levels (list[Tensor]): The boxes at each level, (B, A*P, H, W), if the head predicts any. Defaults to none.
        layers (dict[str, list[Tensor]]): The maps of each further layer, (B, C, H, W) a level. Defaults to none.
        anchors (int): Predictions A at each location. Defaults to 1.
    """

    features: list[Tensor]
    logit_levels: list[Tensor] = field(default_factory=list)
    box_levels: list[Tensor] = field(default_factory=list)
    layers: dict[str, list[Tensor]] = field(default_factory=dict)
    anchors: int = 1

    # Packed when they are asked for: who looks through a window needs no copy of all predictions.
    @cached_property
    def logits(self) -> Tensor | None:
        """Class logits in float32: (B, K), or the M predictions of all levels, (B, K, M). None without a linear classifier."""
        return self._pack(self.logit_levels)

    @cached_property
    def boxes(self) -> Tensor | None:
        """The boxes of all levels in float32, (B, P, M), or (B, P). None if the head predicts none."""
        return self._pack(self.box_levels)

    def maps(self, on: str) -> list[Tensor]:
        """The maps that a loss reads, (B, C, H, W) a level.

        Args:
            on (str): 'feature' for the site's, 'logits' where there are any, or the name of a layer: what a distiller calls
                readable. Logits are maps, too, the anchors of a location beside each other (H, W * A).
        """
        if on == 'logits':
            folded = [fold_anchors(level.float(), self.anchors) for level in self.logit_levels]
            return [level[:, :, None, None] if level.ndim == 2 else level.flatten(3) for level in folded]
        return self.features if on == 'feature' else self.layers[on]

    def within(self, window: Window) -> 'Observed':
        """Features and predictions in a window alone."""
        logits, boxes = (window.cut(maps) if maps else [] for maps in (self.logit_levels, self.box_levels))
        return Observed(window.cut(self.features), logits, boxes, anchors=self.anchors)

    def _pack(self, levels: Sequence[Tensor]) -> Tensor | None:
        """Predictions of all levels, with several anchors at a location one after the other."""
        return Pyramid.pack([fold_anchors(level.float(), self.anchors) for level in levels]) if levels else None


def box_encoding(head: nn.Module) -> BoxEncoding | None:
    """How a head of mmdet encodes the boxes that it returns after the classes.

    Args:
        head (nn.Module): A dense head, or the box head of a two-stage detector.

    Returns:
        BoxEncoding, optional: None if it has no single loss of boxes (RepPoints) or another coder.
    """
    coder: Any = getattr(head, 'bbox_coder', None)
    # RepPoints inherits the former, but learns by two others, and returns points while it trains.
    if not hasattr(head, 'loss_bbox') or hasattr(head, 'loss_bbox_init'):
        return None
    if hasattr(head, 'reg_max'):
        return BoxEncoding('distribution')
    kinds = {'DeltaXYWHBBoxCoder': 'delta', 'DistancePointBBoxCoder': 'distance'}
    kind = kinds.get(type(coder).__name__)
    if kind == 'delta' and not getattr(head, 'reg_class_agnostic', True):
        kind = 'class_delta'
    return None if kind is None else BoxEncoding(kind, tuple(getattr(coder, 'stds', ())))


def as_map(tap: FeatureTap, value: Tensor, channels: int) -> Tensor:
    """What a tap captured as a map (B, C, H, W); vectors come with H = W = 1.

    Raises:
        ValueError: If its shape is not as expected.
    """
    level = value[:, :, None, None] if value.ndim == 2 else value
    if level.ndim != 4 or level.shape[1] != channels:
        raise ValueError(
            f'The {tap!r} is expected to be of shape (B, {channels}, H, W) or (B, {channels}), but got {tuple(value.shape)}. '
            'Tap another module, or correct its channels.'
        )
    return level


class Site(ABC):
    """How a task's features, targets and vectors are obtained. Everything else is the same for all tasks."""

    task: ClassVar[str] = 'detection'
    """'classification' of images, 'segmentation' or 'detection': what methods go by whose papers have a setting for each."""
    norm: ClassVar[str] = 'GN'
    """The norm of what learns from the feature: 'BN' where a batch has enough vectors, 'GN' where few images share a device."""
    defaults: ClassVar[Mapping[str, Any]] = {}
    """What the task prefers for those arguments of DSKDDistiller that are not given; see docs/en/ablations.md."""
    vectors_per_image: int | None = None
    """How many locations of an image are hashed; None for all."""

    @abstractmethod
    def student_port(self, model: nn.Module) -> Port:
        """Find the classifier and the feature of a student."""

    @abstractmethod
    def teacher_port(self, model: nn.Module | None, teacher: FrozenTeacher) -> Port:
        """Find the classifier of a teacher from its config alone, and its feature if the whole model is there."""

    @abstractmethod
    def target(self, seen: Observation, data_samples: Sequence[Any], num_classes: int, sigmoid: bool) -> Target | None:
        """The annotations as a distribution at the resolution of the classifier's logits; None if nothing is classified."""

    def count(self, probability: Tensor, weight: Tensor, sigmoid: bool) -> Tensor:
        """What losses on a target are divided by; see :attr:`~dskd_mm.guidance.Target.count`."""
        return mean_over_ranks(weight.sum())

    def check(self, data_samples: Sequence[Any], num_classes: int) -> None:
        """Refuse annotations that the classifier cannot be guided to, before anything else stumbles over them."""
        return None

    def run_teacher(self, teacher: FrozenTeacher, inputs: Tensor, data_samples: Sequence[Any], student: Observation) -> None:
        """Run the teacher on the student's inputs, so that its taps fire."""
        teacher(inputs, data_samples)

    def head_loss(self, teacher: FrozenTeacher, maps: Sequence[Tensor], inputs: Tensor, data_samples: Sequence[Any]) -> Tensor:
        """Loss of the frozen teacher's own head on features, a mean over the batch: guidance without a linear classifier.

        Raises:
            TypeError: If the site has a linear classifier instead.
        """
        raise TypeError(f'{type(self).__name__} guides by a linear classifier, not by the loss of a head.')

    def window(self, pyramid: Pyramid, target: Target, size: int, generator: torch.Generator) -> Window:
        """A window around a location of each level and image, every class that occurs there with the same chance.

        Args:
            pyramid (Pyramid): The levels.
            target (Target): The annotations, (B, K, M).
            size (int): Its height and width, in locations.
            generator (torch.Generator): Where the random choice comes from.
        """
        classes = location_classes(target, sum(pyramid.lengths)).split(pyramid.lengths, dim=1)
        num_classes = target.probability.shape[1] + 1
        centers = [sample_stratified(level, num_classes, 1, generator)[0][:, 0] for level in classes]
        return Window(pyramid, size, centers, generator)

    def target_within(self, window: Window | None, target: Target, sigmoid: bool) -> Target:
        """The annotations (B, K, M) in a window alone, None if everything fits into it; counted anew, by all processes."""
        probability, weight = target.probability, target.weight
        weight = torch.ones_like(probability[:, :1]) if weight is None else weight
        if window is not None:
            probability, weight = window.take(probability), window.take(weight)
        return replace(target, probability=probability, weight=weight, count=self.count(probability, weight, sigmoid))

    def vectors(
        self, tensors: Sequence[Tensor], target: Target | None, generator: torch.Generator
    ) -> tuple[list[Tensor], Tensor | None]:
        """The vectors that are hashed.

        Args:
            tensors (Sequence[Tensor]): Packed features (B, C, N), all of the same locations.
            target (Target, optional): The annotations.
            generator (torch.Generator): Where a random choice comes from.

        Returns:
            tuple[list[Tensor], Tensor | None]: For each tensor its vectors (M, C) at the same locations, and their weights
            (M, ), None for 1.
        """
        batch, _, length = tensors[0].shape
        classes = None if target is None else location_classes(target, length)
        count = min(self.vectors_per_image or length, length)
        if count == length:
            weight = None if classes is None else (classes >= 0).flatten().to(tensors[0].dtype)
            return [tensor.transpose(1, 2).flatten(0, 1) for tensor in tensors], weight
        if target is None or classes is None:
            num_classes, classes = 1, torch.zeros(batch, length, dtype=torch.long, device=tensors[0].device)
        else:
            num_classes = target.probability.shape[1] + 1
        index, weight = sample_stratified(classes, num_classes, count, generator)
        return [gather(tensor, index).transpose(1, 2).flatten(0, 1) for tensor in tensors], weight.flatten()


def check_annotated(data_samples: Sequence[Any], *names: str) -> None:
    """Verify that samples have the annotations that a task learns from.

    Args:
        data_samples (Sequence): The samples.
        *names (str): The field of the host's samples; of several, one will do.

    Raises:
        ValueError: If one has none.
    """
    for i, sample in enumerate(data_samples):
        if all(name not in sample for name in names):
            raise ValueError(
                f'Sample {i} ({sample.get("img_path", "image in memory")}) is expected to be annotated with '
                f'{" or ".join(names)}, but it has only {sorted(sample.keys())}. Load annotations in the pipeline and pack '
                'them (PackInputs and the like).'
            )


def check_objects(data_samples: Sequence[Any], num_classes: int) -> None:
    """Verify that the labels of objects are those of classes; on an accelerator they are not read back.

    Args:
        data_samples (Sequence): Samples of mmdet.
        num_classes (int): Number of classes, without background.

    Raises:
        ValueError: If a label lies outside of them.
    """
    check_annotated(data_samples, 'gt_instances')
    for i, sample in enumerate(data_samples):
        labels = sample.gt_instances.labels
        wrong = labels[(labels < 0) | (labels >= num_classes)] if labels.device.type == 'cpu' else labels[:0]
        if len(wrong):
            raise ValueError(
                f'Sample {i} ({sample.get("img_path", "image in memory")}) has objects with the labels '
                f'{sorted(wrong.unique().tolist())[:5]}, but the student knows the classes 0 to {num_classes - 1}: correct the '
                'annotations, num_classes of its head, or the classes of the data set (metainfo).'
            )


def location_classes(target: Target, length: int) -> Tensor:
    """The class of each location, for a stratified choice.

    Args:
        target (Target): Annotations (B, K, M); M is a multiple of the number of locations if there are several anchors.
        length (int): Number N of locations.

    Returns:
        Tensor: (B, N), long: the class, K for background, -1 for what is ignored.
    """
    batch, classes = target.probability.shape[:2]
    # The anchors of one location follow each other; a location has the class of its most certain one.
    anchors = math.prod(target.probability.shape[2:]) // length  # not -1: a batch may hold no proposal at all
    probability = target.probability.reshape(batch, classes, length, anchors)
    weight = target.probability.new_ones(batch, 1, length, anchors)
    if target.weight is not None:
        weight = target.weight.reshape(weight.shape)
    best, index = (probability * (weight > 0)).amax(dim=3).max(dim=1)
    index = torch.where(best > 0, index, classes)
    return torch.where(weight.amax(dim=(1, 3)) > 0, index, -1)


def sample_stratified(classes: Tensor, num_classes: int, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Choose locations of each image at random, every class that occurs with the same chance.

    Rare classes, such as small objects, would hardly be met otherwise. No size depends on the data, so nothing waits for the
    device.

    Args:
        classes (Tensor): Class of each location, (B, N), long, below ``num_classes``; -1 is never chosen unless nothing else is
            left.
        num_classes (int): Number of classes, background included.
        count (int): How many locations to choose in an image, at most N.
        generator (torch.Generator): Where the randomness comes from.

    Returns:
        tuple[Tensor, Tensor]: Indices of the locations (B, count), and their weights, 0 for what should have been ignored.
    """
    rows, counts = classes.clamp(min=0), (classes >= 0).float()
    sizes = torch.zeros(len(classes), num_classes, device=classes.device).scatter_add_(1, rows, counts)
    chance = counts / sizes.gather(1, rows).clamp(min=1)
    # Weighted sampling without replacement: the largest of u**(1/w), in logarithms (Efraimidis & Spirakis 2006).
    u = torch.rand(classes.shape, generator=generator, device=classes.device).clamp(min=1e-12)
    index = (u.log() / chance.clamp(min=1e-30)).topk(count, dim=1).indices
    return index, counts.gather(1, index)


def build_site(config: dict | Site | None, student: nn.Module, sites: Mapping[str, str] = SITES_BY_MODEL) -> Site:
    """Build a site, or choose one by the student's type.

    Args:
        config (dict | Site, optional): The site or its arguments, with or without a ``type``. Defaults to None.
        student (nn.Module): The student.
        sites (Mapping[str, str]): The site by the student's class. Defaults to :data:`SITES_BY_MODEL`.

    Returns:
        Site: The site.

    Raises:
        TypeError: If none is known for the student and none is given.
    """
    if isinstance(config, Site):
        return config
    config = dict(config or {})
    if 'type' not in config:
        names = [f'{cls.__module__.split(".")[0]}.{cls.__name__}' for cls in type(student).__mro__]
        known = [sites[name] for name in names if name in sites]
        if not known:
            raise TypeError(
                f'No site is known for the student {names[0]}; known are the subclasses of {", ".join(sites)}. '
                "Name one with site=dict(type='dskd_mm....')."
            )
        config['type'] = known[0]
    cls = MODELS.get(config['type']) if isinstance(config['type'], str) else config['type']
    if isinstance(cls, type):
        check_arguments(cls, config, f'site ({cls.__name__})')
    return MODELS.build(config)
