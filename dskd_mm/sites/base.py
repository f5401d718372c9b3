"""What a site has to tell a distiller, and what all sites share."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from traceback import walk_tb
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dskd_mm.arguments import check_arguments
from dskd_mm.distributed import mean_over_ranks
from dskd_mm.features import Pyramid, Window
from dskd_mm.features.window import gather
from dskd_mm.registry import MODELS
from dskd_mm.sites.annotations import location_classes, sample_stratified
from dskd_mm.structures import TapRecord, TapSpec, Target
from dskd_mm.teacher import FrozenTeacher

SITES_BY_MODEL = {
    'mmpretrain.BaseClassifier': 'dskd_mm.ClassificationSite',
    'mmseg.EncoderDecoder': 'dskd_mm.SegmentationSite',
    'mmdet.SingleStageDetector': 'dskd_mm.DenseDetectionSite',
    'mmdet.TwoStageDetector': 'dskd_mm.TwoStageDetectionSite',
    'mmdet.MaskFormer': 'dskd_mm.NeckSite',
    'mmdet.BaseDetector': 'dskd_mm.NeckSite',
}
"""Which site a student gets by itself, by the host and name of its nearest class that is listed."""


NECK_SITES = {name: 'dskd_mm.NeckSite' if name.startswith('mmdet.') else site for name, site in SITES_BY_MODEL.items()}
"""The same for methods that distil a detector's feature pyramid instead of its classifier."""


AT_THE_NECK = "Distil at the neck instead: site=dict(type='dskd_mm.NeckSite')."
"""The way that is open to every model of a backbone and a head, for messages."""


class Site(ABC):
    """How a task's features, targets and hashed vectors are obtained. Everything else is the same for all tasks."""

    task: ClassVar[str] = ''
    """The row of the methods' tables of defaults: 'classification', 'segmentation', 'dense_detection', 'two_stage_detection' or
    'neck'. A site of your own may name one of them, or keep what is general."""
    norm: ClassVar[str] = 'GN'
    """The norm of what learns from the feature: 'BN' where a batch has enough vectors, 'GN' where few images share a device."""
    vectors_per_image: int | None = None
    """How many locations of an image are hashed; None for all."""
    counts_objects: ClassVar[bool] = False
    """Whether losses are divided by the number of predictions for objects, which may be none."""

    @abstractmethod
    def student_spec(self, model: nn.Module) -> TapSpec:
        """Find the classifier and the feature of a student."""

    @abstractmethod
    def teacher_spec(self, model: nn.Module | None, teacher: FrozenTeacher) -> TapSpec:
        """Find the classifier of a teacher from its config alone, and its feature if the whole model is there."""

    @abstractmethod
    def target(self, record: TapRecord, data_samples: Sequence[Any], num_classes: int, sigmoid: bool) -> Target | None:
        """Return the annotations as a distribution at the resolution of the logits; None if nothing is classified."""

    def avg_factor(self, probability: Tensor, weight: Tensor, sigmoid: bool) -> Tensor:
        """Return what losses on a target are divided by; see :attr:`~dskd_mm.structures.Target.avg_factor`."""
        return mean_over_ranks(weight.sum())

    def ends_in_classifier(self, spec: TapSpec) -> bool:
        """Return whether a student's logits are its classifier's of the feature, or of its average, and no more."""
        is_own_input = spec.features == spec.classifiers and spec.io == 'input'
        return not spec.logits_of and (spec.is_pooled or is_own_input)

    def check(self, data_samples: Sequence[Any], spec: TapSpec) -> None:
        """Refuse annotations that the classifier cannot be guided to, before anything else stumbles over them.

        Args:
            data_samples (Sequence): The host's samples of a batch.
            spec (TapSpec): Where the student is tapped.

        Raises:
            ValueError: If they are missing, or name classes that there are not.
        """
        return None

    def run_teacher(
        self, teacher: FrozenTeacher, spec: TapSpec, inputs: Tensor, data_samples: Sequence[Any], student: TapRecord
    ) -> None:
        """Run the teacher on the student's inputs, so that its taps fire.

        Args:
            teacher (FrozenTeacher): The teacher.
            spec (TapSpec): Where it is tapped.
            inputs (Tensor): Images (B, C, H, W), normalised for the student.
            data_samples (Sequence): Their annotations.
            student (TapRecord): The student's open taps.
        """
        teacher(inputs, data_samples)

    def head_loss(self, teacher: FrozenTeacher, maps: Sequence[Tensor], inputs: Tensor, data_samples: Sequence[Any]) -> Tensor:
        """Return the loss of the frozen teacher's own head on features, a mean over the batch.

        It guides where there is no linear classifier.

        Raises:
            TypeError: If the site has a linear classifier instead.
        """
        raise TypeError(f'{type(self).__name__} guides by a linear classifier, not by the loss of a head.')

    def window(self, pyramid: Pyramid, target: Target, size: int, generator: torch.Generator) -> Window:
        """Draw a window around a location of each level and image, every class that occurs there with the same chance.

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
        """Return the annotations (B, K, M) in a window alone, the whole for None; counted anew."""
        probability, weight = target.probability, target.weight
        weight = torch.ones_like(probability[:, :1]) if weight is None else weight
        if window is not None:
            probability, weight = window.take(probability), window.take(weight)
        return replace(target, probability=probability, weight=weight, avg_factor=self.avg_factor(probability, weight, sigmoid))

    def hash_vectors(
        self, tensors: Sequence[Tensor], target: Target | None, generator: torch.Generator
    ) -> tuple[list[Tensor], Tensor | None]:
        """Return the vectors that are hashed.

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
        num_samples = min(self.vectors_per_image or length, length)
        if num_samples == length:
            weight = None if classes is None else (classes >= 0).flatten().to(tensors[0].dtype)
            return [tensor.transpose(1, 2).flatten(0, 1) for tensor in tensors], weight
        if target is None or classes is None:
            num_classes, classes = 1, torch.zeros(batch, length, dtype=torch.long, device=tensors[0].device)
        else:
            num_classes = target.probability.shape[1] + 1
        index, weight = sample_stratified(classes, num_classes, num_samples, generator)
        return [gather(tensor, index).transpose(1, 2).flatten(0, 1) for tensor in tensors], weight.flatten()

    def counted_vectors(
        self, tensors: Sequence[Tensor], counts: Tensor | None, target: Target | None, generator: torch.Generator
    ) -> tuple[list[Tensor], Tensor | None]:
        """Return the vectors that are hashed, of which some do not count; see :meth:`hash_vectors`.

        Args:
            tensors (Sequence[Tensor]): Packed features (B, C, N), all of the same locations.
            counts (Tensor, optional): 1 for what counts, 0 for what does not, (B, 1, N) or (B, 1, 1); None for all.
            target (Target, optional): The annotations.
            generator (torch.Generator): Where a random choice comes from.
        """
        if counts is None:
            return self.hash_vectors(tensors, target, generator)
        # They take the way of the features, so they stay with the vectors that the site chooses.
        packed = [*tensors, counts.expand(-1, -1, tensors[0].shape[2])]
        (*vectors, count), weight = self.hash_vectors(packed, target, generator)
        return vectors, count[:, 0] if weight is None else weight * count[:, 0]


@contextmanager
def naming_the_neck(site: Site, student: nn.Module, teachers: Sequence[FrozenTeacher]) -> Iterator[None]:
    """Add to whatever is refused of a head the way that is open to every model of a backbone and a head.

    What a host's own code says is left as it is: a model that cannot train by itself cannot be distilled at its neck either.

    Args:
        site (Site): The site that refuses; one at the neck is no way out of itself.
        student (nn.Module): The student.
        teachers (Sequence[FrozenTeacher]): Its teachers.
    """
    try:
        yield
    except (ValueError, RuntimeError) as error:
        *_, (frame, _) = walk_tb(error.__traceback__)
        is_ours = frame.f_globals['__name__'].startswith(('dskd_mm.sites', 'dskd_mm.features', 'dskd_mm.structures'))
        has_backbones = hasattr(student, 'backbone') and all('backbone' in teacher.config for teacher in teachers)
        if site.task == 'neck' or not is_ours or not has_backbones or AT_THE_NECK in str(error):
            raise
        raise (ValueError if isinstance(error, ValueError) else RuntimeError)(f'{error} {AT_THE_NECK}') from error


@contextmanager
def calling_the_head(site: Site, head: Any) -> Iterator[None]:
    """Refuse by name a teacher's head that cannot be called as a site calls it.

    Raises:
        ValueError: If the host's code fails.
    """
    try:
        yield
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"The teacher's {type(head).__name__} is expected to run as {type(site).__name__} calls it, but got "
            f'{type(error).__name__}: {error}.'
        ) from error


@contextmanager
def returning_as_in_training(*parts: nn.Module) -> Iterator[None]:
    """Make parts of a frozen teacher return what a student's return in training.

    Heads return what their losses expect only while they train: FCOS in units of the stride, VFNet coarse boxes, too, DINO with
    its denoising queries. The flags of these modules alone say so: norms and dropout below them stay as they are.
    """
    for part in parts:
        part.training = True
    try:
        yield
    finally:
        for part in parts:
            part.training = False


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
