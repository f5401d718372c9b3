"""Features on their way from the student to the denoised ones, and the teacher's beside them."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from dskd_mm.distillers import DSKDDistiller
from dskd_mm.features import Pyramid
from dskd_mm.guidance import TeacherClassifier
from dskd_mm.structures import Target


@dataclass
class FeatureJourney:
    """The features of a batch at each stage of denoising, in the teacher's channels.

    Attributes:
        names (list[str]): What the S stages are called: the student's feature, each sampling step, the teacher's feature.
        stages (Tensor): The features, (S, B, C, N); B counts proposals in two-stage detection.
        pyramid (Pyramid): Their levels.
        logits (Tensor, optional): What the teacher's classifier says of them, (S, B, K) or (S, B, K, M); None without one.
        target (Target, optional): The annotations, None without a classifier.
        classifiers (list[TeacherClassifier]): The teacher's, none where a whole head classifies.
    """

    names: list[str]
    stages: Tensor
    pyramid: Pyramid
    logits: Tensor | None
    target: Target | None
    classifiers: list[TeacherClassifier]

    def cpu(self) -> 'FeatureJourney':
        """Return the same where it can be drawn."""
        return replace(
            self,
            stages=self.stages.cpu(),
            logits=None if self.logits is None else self.logits.cpu(),
            target=None if self.target is None else self.target.cpu(),
            classifiers=[copy.deepcopy(classifier).cpu() for classifier in self.classifiers],
        )

    @property
    def is_dense(self) -> bool:
        """Return whether there is a prediction at every location."""
        return self.logits is not None and self.logits.ndim == 4

    @property
    def probabilities(self) -> Tensor | None:
        """Return the classifier's probabilities, (S, B, K, 1) of images and proposals, (S, B, K, N) of locations.

        Of several priors at a location it is the highest one.
        """
        if self.logits is None:
            return None
        predicted = torch.stack([self.classifiers[0].predict(logits) for logits in self.logits])
        return self._at_locations(predicted if self.is_dense else predicted[..., None])

    def labels(self) -> Tensor:
        """Return the annotated class of each location, (B, N), or of each image or proposal, (B, 1); -1 for none."""
        if self.target is None:
            return torch.full((self.stages.shape[1], 1), -1)
        foreground = self.target.apply_weight(self.target.foreground)
        foreground = self._at_locations(foreground if self.is_dense else foreground[..., None])
        highest, label = foreground.max(dim=1)
        return torch.where(highest > 0, label, -1)

    def vectors(self) -> Tensor:
        """Return the features that belong to :meth:`labels`, (S, B, C, N), averaged over the locations of an image (N = 1)."""
        return self.stages if self.is_dense else self.stages.mean(dim=3, keepdim=True)

    def class_means(self) -> dict[int, Tensor]:
        """Return the mean feature (S, C) of each annotated class; of the whole, as class -1, where nothing is."""
        return means_by_class(self.vectors(), self.labels())

    def class_opinions(self) -> dict[int, Tensor]:
        """Return the mean of the probabilities (S, K) where a class is annotated, by the class."""
        return {} if self.probabilities is None else means_by_class(self.probabilities, self.labels())

    def class_directions(self) -> Tensor | None:
        """Return the direction of each class for the teacher's classifier: its weights, less their mean, (K, C).

        None without a classifier. Kernels are summed, and averaged over the priors of a location.
        """
        if not self.classifiers:
            return None
        weight = self.classifiers[0].weight
        if weight.ndim == 4:
            weight = weight.unflatten(0, (self.classifiers[0].num_priors, -1)).mean(dim=0).sum(dim=(2, 3))
        return weight - weight.mean(dim=0) if len(weight) > 1 else weight

    def _at_locations(self, predictions: Tensor) -> Tensor:
        """Return predictions (..., K, M) at each location, (..., K, N): the highest of its priors."""
        priors = self.classifiers[0].num_priors
        return predictions if priors == 1 else predictions.unflatten(-1, (-1, priors)).amax(dim=-1)


def means_by_class(values: Tensor, labels: Tensor) -> dict[int, Tensor]:
    """Return the mean of values (S, B, C, N) over the places of each label in (B, N), (S, C) each.

    A label of an image counts for all its locations; -1 is left out, unless there is nothing else.
    """
    labels = labels.expand(-1, values.shape[3])
    flat = values.transpose(1, 2).flatten(2)
    present = [label for label in labels.unique().tolist() if label >= 0]
    if not present:
        return {-1: flat.mean(dim=2)}
    return {label: flat[:, :, labels.flatten() == label].mean(dim=2) for label in present}


@torch.no_grad()
def follow_feature(
    distiller: DSKDDistiller, inputs: Tensor, data_samples: Sequence[Any], guided: bool = True
) -> FeatureJourney:
    """Denoise the student's features of a batch, and keep every stage.

    The distiller stays in its mode: in training mode norms use the statistics of the batch, as a training step does, in eval
    mode the running ones. As in a step, running averages follow the batch: take a copy if that matters.

    Args:
        distiller (DSKDDistiller): The distiller.
        inputs (Tensor): Preprocessed images of shape (B, C, H, W).
        data_samples (Sequence): Their annotations.
        guided (bool): Whether the teacher guides. Defaults to True.

    Returns:
        FeatureJourney: The stages, on the CPU.

    Raises:
        ValueError: If the distiller does not denoise.
    """
    steps: list[Tensor] = []
    load_whole_teacher(distiller)
    batch, _ = distiller.denoise(inputs, list(data_samples), guided, steps, with_teacher=True)
    assert batch.teacher is not None  # it was asked for
    stages = [batch.aligned, *steps, Pyramid.pack(batch.teacher.features).float()]
    sampler, schedule = distiller.diffusion.sampler, distiller.diffusion.schedule
    timesteps = schedule.timesteps(sampler.steps, sampler.start)
    logits = [batch.pyramid.map(distiller.classifiers, stage) for stage in stages] if distiller.classifiers else None
    return FeatureJourney(
        names=["student's", *(f't = {t}' for t in timesteps[:-1]), f't = {timesteps[-1]}: denoised', "teacher's"],
        stages=torch.stack(stages),
        pyramid=batch.pyramid,
        logits=None if logits is None else torch.stack(logits),
        target=batch.target,
        classifiers=list(distiller.classifiers),
    ).cpu()


def load_whole_teacher(distiller: DSKDDistiller) -> None:
    """Load the teacher with its backbone, also where training is content with its classifier."""
    if distiller.teacher.model is None:
        device = next(distiller.student.parameters()).device
        distiller.teacher.load(distiller.teacher_spec, device, True, distiller.data_preprocessor)
    distiller.load_teacher()
