"""The frozen teacher as a judge of features: by its linear classifier, or by the loss of its whole head."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from dskd_mm.features.pyramid import MapFunction, Pyramid
from dskd_mm.guidance.classifier import ClassifierGuidance, Target, TeacherClassifier, target_cross_entropy
from dskd_mm.guidance.head_loss import HeadLossGuidance

Imitation = Callable[[Tensor, Tensor, Target, bool], Tensor]
"""How logits follow the teacher's, given the annotations and whether classes are independent: a ``LogitLoss``."""


class Judge(ABC):
    """Judges features of a packed pyramid (B, C, N), see :class:`~dskd_mm.features.Pyramid`."""

    @abstractmethod
    def loss(self, packed: Tensor, imitation: Imitation | None) -> tuple[Tensor, Tensor | None]:
        """How far the features are from what is wanted; trains whoever made them.

        Args:
            packed (Tensor): Features (B, C, N), in the graph.
            imitation (Callable, optional): How the features' logits follow those of the teacher, where these are wanted.

        Returns:
            tuple[Tensor, Tensor | None]: The loss, a scalar, and the logits of the features, where there are any.
        """

    @abstractmethod
    def guidance(self, unit: str, scale: Tensor, autoencoder: nn.Module | None) -> Callable[[Tensor], Tensor]:
        """What a sampler is guided by, in the space that is diffused.

        Args:
            unit (str): 'logit' or 'gradient', what a strength of 1 means.
            scale (Tensor): What is diffused times this scalar is a feature, or a latent.
            autoencoder (FeatureAutoEncoder, optional): Decodes a latent to a feature.

        Returns:
            Callable: Maps (B, C', N) to the gradient there, of the same shape.
        """


class ClassifierJudge(Judge):
    """Judges by the teacher's linear classifier, in closed form.

    Args:
        pyramid (Pyramid): The levels.
        classifiers (Sequence[TeacherClassifier]): One for all levels, or one for each.
        label (Target): The annotations.
        opinion (Tensor, optional): Logits of the teacher, which are wanted instead of the annotations. Defaults to None.
        guided_classes (int, optional): How many classes guidance regards at most, see :meth:`at_stake`. Defaults to None: all.
    """

    def __init__(
        self,
        pyramid: Pyramid,
        classifiers: Sequence[TeacherClassifier],
        label: Target,
        opinion: Tensor | None = None,
        guided_classes: int | None = None,
    ) -> None:
        self.pyramid = pyramid
        self.classifiers = list(classifiers)
        self.label = label
        self.opinion = opinion
        self.guided_classes = guided_classes

    @property
    def wanted(self) -> Target:
        """What guidance aims at: the annotations, or the teacher's opinion."""
        if self.opinion is None:
            return self.label
        return replace(self.label, probability=self.classifiers[0].predict(self.opinion))

    def loss(self, packed: Tensor, imitation: Imitation | None) -> tuple[Tensor, Tensor | None]:
        """Divergence of the classifier's prediction from what is wanted; see :meth:`Judge.loss`."""
        logits = self.pyramid.map(self.classifiers, packed)
        sigmoid = self.classifiers[0].sigmoid
        if self.opinion is None:
            return target_cross_entropy(logits, self.label, sigmoid), logits
        assert imitation is not None
        return imitation(logits, self.opinion, self.label.expand_as(logits), sigmoid), logits

    def at_stake(self, target: Target) -> Tensor | None:
        """The classes that guidance regards: those annotated in the batch first, then those that are most surely wanted.

        The background, where there is an output for it, is always among them. Their number does not depend on the data, so
        nothing waits for the device.

        Args:
            target (Target): What is wanted.

        Returns:
            Tensor, optional: Indices, (k, ), long; None for all.
        """
        count = target.foreground.shape[1]
        if self.guided_classes is None or self.guided_classes >= count or not target.probability.numel():
            return None

        def highest(wanted: Target) -> Tensor:
            return wanted.apply_weight(wanted.foreground).transpose(0, 1).flatten(1).amax(dim=1)

        annotated = highest(self.label)
        surest = annotated if target is self.label else highest(target)
        classes = ((annotated > 0) + surest).topk(self.guided_classes).indices
        return torch.cat([classes, classes.new_full((1,), count)]) if target.background else classes

    def guidance(self, unit: str, scale: Tensor, autoencoder: nn.Module | None) -> Callable[[Tensor], Tensor]:
        """See :meth:`Judge.guidance`."""
        decoder = None if autoencoder is None else autoencoder.get_submodule('decoder')
        assert decoder is None or isinstance(decoder, nn.Conv2d)
        classifiers = self.classifiers * (len(self.pyramid.sizes) if len(self.classifiers) == 1 else 1)
        lengths = [length * classifiers[0].anchors for length in self.pyramid.lengths]
        wanted = self.wanted
        classes = self.at_stake(wanted)
        each: list[MapFunction] = [
            ClassifierGuidance(classifier, target, unit, scale, decoder, classes)
            for classifier, target in zip(classifiers, wanted.split(lengths), strict=True)
        ]
        return lambda packed: self.pyramid.map(each, packed)


class HeadJudge(Judge):
    """Judges by the loss of the teacher's head, differentiated by autograd: for recognisers without a linear classifier.

    A strength of 1 in the unit 'logit' moves the features of an image by 1 standard deviation in the root mean square, for the
    size of a head's loss has no scale of its own; in the unit 'gradient' it is the plain gradient.

    Args:
        pyramid (Pyramid): The levels.
        head_loss (Callable): Loss of the frozen head on the maps of all levels, a mean over the batch.
    """

    def __init__(self, pyramid: Pyramid, head_loss: Callable[[Sequence[Tensor]], Tensor]) -> None:
        self.pyramid = pyramid
        self.head_loss = head_loss

    def loss(self, packed: Tensor, imitation: Imitation | None) -> tuple[Tensor, Tensor | None]:
        """The head's loss; see :meth:`Judge.loss`."""
        return self.head_loss(self.pyramid.unpack(packed)), None

    def guidance(self, unit: str, scale: Tensor, autoencoder: nn.Module | None) -> Callable[[Tensor], Tensor]:
        """See :meth:`Judge.guidance`."""

        def summed(x: Tensor) -> Tensor:
            feature = x * scale
            if autoencoder is not None:
                feature = autoencoder.get_submodule('decoder')(feature[..., None])[..., 0]
            return self.head_loss(self.pyramid.unpack(feature)) * len(x)

        gradient = HeadLossGuidance(summed)
        if unit == 'gradient':
            return gradient

        def normalised(x: Tensor) -> Tensor:
            g = gradient(x)
            # The squares of smaller gradients would be 0, and features be thrown about by a head that does not mind.
            return g / g.square().mean(dim=(1, 2), keepdim=True).sqrt().clamp(min=1e-12)

        return normalised
