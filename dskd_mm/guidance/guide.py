"""The frozen teacher as a guide: it tells how far features are from what it would say, and which way to go."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from dskd_mm.features.pyramid import MapFunction, Pyramid
from dskd_mm.functional import divergences, target_cross_entropy
from dskd_mm.guidance.classifier import TeacherClassifier
from dskd_mm.guidance.gradient import ClassifierGuidance, HeadLossGuidance
from dskd_mm.structures.target import Target

Imitation = Callable[[Tensor, Tensor, Target, bool], Tensor]
"""How logits follow the teacher's, given the annotations and whether classes are independent: a ``LogitLoss``."""


class TeacherGuide(ABC):
    """Guides features of a packed pyramid (B, C, N), see :class:`~dskd_mm.features.Pyramid`."""

    @abstractmethod
    def loss(self, packed: Tensor, imitation: Imitation | None) -> tuple[Tensor, Tensor | None]:
        """Return how far features are from the target; it trains whoever made them.

        Args:
            packed (Tensor): Features (B, C, N), in the graph.
            imitation (Callable, optional): How the features' logits follow the teacher's, where these are the target.

        Returns:
            tuple[Tensor, Tensor | None]: The loss, a scalar, and the logits of the features, where there are any.
        """

    @abstractmethod
    def guidance(self, unit: str, scale: Tensor, decoder: nn.Conv2d | None) -> Callable[[Tensor], Tensor]:
        """Return the guidance term of a sampler, in the space that is diffused.

        Args:
            unit (str): 'logit' or 'gradient', what a strength of 1 means.
            scale (Tensor): What is diffused times this scalar is a feature, or a latent.
            decoder (nn.Conv2d, optional): Decodes a latent to a feature, a 1x1 convolution.

        Returns:
            Callable: Maps (B, C', N) to the gradient there, of the same shape.
        """


class ClassifierGuide(TeacherGuide):
    r"""Guides by the teacher's linear classifier, in closed form.

    Args:
        pyramid (Pyramid): The levels.
        classifiers (Sequence[TeacherClassifier]): One for all levels, or one for each.
        label (Target): The annotations.
        teacher_logits (Tensor, optional): Logits of the teacher, the target instead of the annotations. Defaults to None.
        guided_classes (int, optional): How many classes guidance regards at most, see :meth:`select_classes`. Defaults to
            None: all.
        temperature (float): Softens prediction and target of the guidance, where the teacher's logits are the target. In the
            unit 'logit' the gradient is :math:`T\,W^\top(q_T-p_T)` over the mean squared norm of a class's weights. Defaults
            to 1.
    """

    def __init__(
        self,
        pyramid: Pyramid,
        classifiers: Sequence[TeacherClassifier],
        label: Target,
        teacher_logits: Tensor | None = None,
        guided_classes: int | None = None,
        temperature: float = 1.0,
    ) -> None:
        self.pyramid = pyramid
        self.classifiers = list(classifiers)
        self.label = label
        self.teacher_logits = teacher_logits
        self.guided_classes = guided_classes
        self.temperature = 1.0 if teacher_logits is None else temperature

    @property
    def target(self) -> Target:
        """Return what guidance aims at: the annotations, or the teacher's own prediction."""
        return self.target_at(1.0)

    def target_at(self, temperature: float) -> Target:
        """Return :attr:`target` with the teacher's prediction softened."""
        if self.teacher_logits is None:
            return self.label
        return replace(self.label, probability=self.classifiers[0].predict(self.teacher_logits / temperature))

    def classify(self, packed: Tensor) -> Tensor:
        """Return logits of features (B, C, N), at the resolution of the target."""
        return self.pyramid.map(self.classifiers, packed)

    def divergences(self, logits: Tensor) -> Tensor:
        """Return how far logits are from the target, summed over the predictions of each sample by their weights, (B, )."""
        return divergences(logits, self.target, self.classifiers[0].sigmoid)

    def loss(self, packed: Tensor, imitation: Imitation | None) -> tuple[Tensor, Tensor | None]:
        """Return the divergence of the classifier's prediction from the target; see :meth:`TeacherGuide.loss`."""
        logits = self.classify(packed)
        sigmoid = self.classifiers[0].sigmoid
        if self.teacher_logits is None or imitation is None:
            return target_cross_entropy(logits, self.target, sigmoid), logits
        return imitation(logits, self.teacher_logits, self.label.expand_as(logits), sigmoid), logits

    def select_classes(self, target: Target) -> Tensor | None:
        """Select the classes that guidance regards: those annotated in the batch first, then those most surely predicted.

        The background, where there is an output for it, is always among them. Their number does not depend on the data, so
        nothing waits for the device.

        Args:
            target (Target): What guidance aims at.

        Returns:
            Tensor, optional: Indices, (k, ), long; None for all.
        """
        num_classes = target.foreground.shape[1]
        if self.guided_classes is None or self.guided_classes >= num_classes or not target.probability.numel():
            return None

        def highest(target: Target) -> Tensor:
            return target.apply_weight(target.foreground).transpose(0, 1).flatten(1).amax(dim=1)

        annotated = highest(self.label)
        surest = annotated if target is self.label else highest(target)
        classes = ((annotated > 0) + surest).topk(self.guided_classes).indices
        return torch.cat([classes, classes.new_full((1,), num_classes)]) if target.background else classes

    def guidance(self, unit: str, scale: Tensor, decoder: nn.Conv2d | None) -> Callable[[Tensor], Tensor]:
        """See :meth:`TeacherGuide.guidance`."""
        softened = [classifier.softened(self.temperature) for classifier in self.classifiers]
        classifiers = softened * (len(self.pyramid.sizes) if len(softened) == 1 else 1)
        lengths = [length * classifiers[0].num_priors for length in self.pyramid.lengths]
        whole = self.target_at(self.temperature)
        classes = self.select_classes(whole)
        each: list[MapFunction] = [
            ClassifierGuidance(classifier, target, unit, scale, decoder, classes)
            for classifier, target in zip(classifiers, whole.split(lengths), strict=True)
        ]
        return lambda packed: self.pyramid.map(each, packed)


class HeadLossGuide(TeacherGuide):
    """Guides by the loss of the teacher's head, differentiated by autograd: for recognisers without a linear classifier.

    A strength of 1 in the unit 'logit' moves the features of an image by 1 standard deviation in the root mean square, for the
    size of a head's loss has no scale of its own; in the unit 'gradient' it is the plain gradient.

    Args:
        pyramid (Pyramid): The levels.
        head_loss (Callable): Loss of the frozen head on the maps of all levels, a mean over the batch: on annotations, or the
            distance of its predictions from those that it makes of the teacher's own feature.
    """

    def __init__(self, pyramid: Pyramid, head_loss: Callable[[Sequence[Tensor]], Tensor]) -> None:
        self.pyramid = pyramid
        self.head_loss = head_loss

    def loss(self, packed: Tensor, imitation: Imitation | None) -> tuple[Tensor, Tensor | None]:
        """Return the head's loss; see :meth:`TeacherGuide.loss`."""
        return self.head_loss(self.pyramid.unpack(packed)), None

    def guidance(self, unit: str, scale: Tensor, decoder: nn.Conv2d | None) -> Callable[[Tensor], Tensor]:
        """See :meth:`TeacherGuide.guidance`."""

        def summed(x: Tensor) -> Tensor:
            feature = x * scale
            if decoder is not None:
                feature = decoder(feature[..., None])[..., 0]
            return self.head_loss(self.pyramid.unpack(feature)) * len(x)

        gradient = HeadLossGuidance(summed)
        if unit == 'gradient':
            return gradient

        def normalised(x: Tensor) -> Tensor:
            g = gradient(x)
            # Smaller gradients have squares of 0: they would be divided by nothing, and features move far for no reason.
            return g / g.square().mean(dim=(1, 2), keepdim=True).sqrt().clamp(min=1e-12)

        return normalised
