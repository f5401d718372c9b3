"""The guidance term of a sampler: in closed form for a linear classifier, by autograd for any head."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dskd_mm.guidance.classifier import TeacherClassifier
from dskd_mm.structures.target import Target


class ClassifierGuidance:
    r"""The guidance term of a sampler: :math:`G(x)` at a feature in the denoiser's own scale.

    Args:
        classifier (TeacherClassifier): The frozen classifier.
        target (Target): What it should say.
        unit (str): What a strength of 1 means. 'gradient': the plain :math:`\nabla_x \log p(y|x)`, in which the strength has
            to absorb the H*W of pooling, the width and the size of the weights. 'logit': the gradient by the logit, i.e.
            without the pooling's 1/(H*W) and divided by the mean squared norm of a class's weights, so that a shift by G moves
            logits by about q - p whatever the teacher and resolution. Defaults to 'logit'.
        scale (Tensor, optional): The classifier sees ``scale * x`` (a scalar). Defaults to None: 1.
        decoder (nn.Conv2d, optional): A 1x1 convolution through which the classifier sees x: ``decoder(scale * x)``. Defaults
            to None.
        classes (Tensor, optional): Indices of the classes that are regarded, (k, ), long: the likelihood is that of the target
            among these. A strength of 1 means what it means for all of them. Defaults to None: all.

    Raises:
        ValueError: If ``unit`` is unknown.
    """

    def __init__(
        self,
        classifier: TeacherClassifier,
        target: Target,
        unit: str = 'logit',
        scale: Tensor | None = None,
        decoder: nn.Conv2d | None = None,
        classes: Tensor | None = None,
    ) -> None:
        if unit not in ('logit', 'gradient'):
            raise ValueError(f"The unit of guidance must be 'logit' or 'gradient', but got {unit!r}.")
        self.whole = classifier
        if classes is not None:
            classifier, target = classifier.select(classes), target.select(classes)
        # A scale that the classifier takes in costs nothing at the features.
        self.classifier = classifier if scale is None or decoder is not None else classifier.scaled(scale)
        self.target = target
        self.unit = unit
        self.scale = scale
        self.decoder = decoder

    def __call__(self, x: Tensor) -> Tensor:
        """Return the gradient at features x of shape (B, C, H, W), of the same shape."""
        with torch.autocast(device_type=x.device.type, enabled=False):
            return self._gradient(x)

    @cached_property
    def _gain(self) -> Tensor:
        # The same in all sampling steps.
        gain = self.whole.logit_gain(self.decoder)
        return gain if self.scale is None else gain * self.scale**2

    def _strength(self, x: Tensor) -> Tensor | None:
        strength = None if self.scale is None or self.decoder is None else self.scale
        if self.unit == 'gradient':
            return strength
        locations = 1 if self.classifier.is_dense else x.shape[2] * x.shape[3]
        return (1.0 if strength is None else strength) / (self._gain / locations).clamp(min=1e-12)

    def _gradient(self, x: Tensor) -> Tensor:
        feature, strength = x, self._strength(x)
        if self.decoder is not None:
            feature = self.decoder(x if self.scale is None else x * self.scale)
        gradient = self.classifier.gradient(feature, self.target.probability, self.target.weight, strength)
        return gradient if self.decoder is None else F.conv_transpose2d(gradient, self.decoder.weight.detach())


class HeadLossGuidance:
    r""":math:`G = -\nabla_x L_{head}(x)`, with the loss of the frozen head as the negative log-likelihood.

    One autograd pass through the head per sampling step, where the closed form of
    :class:`~dskd_mm.guidance.TeacherClassifier` needs none. The parameters of the head get no gradient.

    Args:
        head_loss (Callable[[Tensor], Tensor]): Maps features to the *sum* over the batch of the losses
            (a scalar), so that each sample's gradient is its own; multiply a mean by its denominator.
    """

    def __init__(self, head_loss: Callable[[Tensor], Tensor]) -> None:
        self.head_loss = head_loss

    def __call__(self, feature: Tensor) -> Tensor:
        """Return the gradient of the log-likelihood at a feature.

        Args:
            feature (Tensor): Features of any shape (B, ...), detached or not.

        Returns:
            Tensor: Gradient of the same shape, outside of any graph.
        """
        with torch.enable_grad(), without_float16(feature.device.type):
            leaf = feature.detach().requires_grad_()
            loss = self.head_loss(leaf)
            if loss.ndim != 0:
                raise ValueError(f'head_loss must return a scalar, but got a tensor of shape {tuple(loss.shape)}.')
            (gradient,) = torch.autograd.grad(loss, leaf, allow_unused=True)
        return torch.zeros_like(feature) if gradient is None else -gradient


def without_float16(device: str) -> AbstractContextManager:
    """Return what a gradient is taken under that no loss scale keeps from vanishing.

    A mean over all locations of a batch leaves each so little that float16, and with it autocast on GPUs, makes it 0.
    """
    is_float16 = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16
    return torch.autocast(device, enabled=False) if is_float16 else nullcontext()
