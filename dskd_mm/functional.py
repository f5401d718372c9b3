"""Functions of tensors that losses, guidance and diffusion share."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from dskd_mm.structures.target import Target

CHUNK = 2**20
"""Logits that are compared at a time."""


def mean(values: Tensor) -> Tensor:
    """Return the mean of a tensor; of an empty one 0, still in the graph."""
    return values.sum() / max(values.numel(), 1)


def mean_squared_error(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the mean squared error in float32; 0, still in the graph, without any element (no proposal)."""
    if prediction.numel() == 0:
        return prediction.float().sum()
    return F.mse_loss(prediction.float(), target.float())


def standardize(maps: Tensor, eps: float = 1e-8) -> Tensor:
    """Bring each channel of maps (B, C, ...) to zero mean and unit variance over images and locations.

    Args:
        maps (Tensor): Of shape (B, C, ...).
        eps (float): Added to the variance, which bounds the gradient of dead channels. Defaults to 1e-8.
    """
    dims = (0, *range(2, maps.ndim))
    centered = maps - maps.mean(dim=dims, keepdim=True)
    return centered / (centered.square().mean(dim=dims, keepdim=True) + eps).sqrt()


def probabilities(logits: Tensor, sigmoid: bool) -> Tensor:
    """Return the probabilities of classes, independent ones or exclusive ones, from logits (B, K, ...)."""
    return logits.sigmoid() if sigmoid else logits.softmax(dim=1)


def hit_rate(logits: Tensor, target: Target) -> Tensor:
    """Return how often the most likely class is annotated: the main one of mixed images, any one of several labels.

    What is ignored or background does not count, whether background is the last class or none.

    Args:
        logits (Tensor): (B, K, ...).
        target (Target): The annotations, of that shape.
    """
    annotated = target.main_classes()[:, : target.foreground.shape[1]]
    counts = target.apply_weight(annotated.any(dim=1, keepdim=True).float())
    if logits.shape[1] == 1:
        hits = logits > 0  # a single class is named or not
    else:
        # The largest value instead of its index: finding the index takes several times as long where K is the outer dimension.
        found = logits[:, : annotated.shape[1]] == logits.amax(dim=1, keepdim=True)
        hits = (annotated & found).any(dim=1, keepdim=True)
    return (hits * counts).sum() / counts.sum().clamp(min=1)


def target_cross_entropy(logits: Tensor, target: Target, sigmoid: bool = False, temperature: float = 1.0) -> Tensor:
    r"""Return the KL divergence of the target q from the prediction of ``logits``, in float32; see :attr:`Target.focus`, too.

    Unless the target itself is in a graph, the gradient is computed together with the value, piece by piece: that of dense
    predictions would else keep some ten tensors of their size for the backward pass.

    Args:
        logits (Tensor): (B, K, ...).
        target (Target): Distribution q (softened by the temperature already) and weights.
        sigmoid (bool): Whether classes are independent: the divergence is summed over them. Defaults to False.
        temperature (float): Softens the prediction; the result is multiplied by its square. Defaults to 1.

    Returns:
        Tensor: A scalar, averaged over the samples (locations) that count; 0, and still in the graph, if none counts.
    """
    if target.probability.requires_grad or not logits.requires_grad or not torch.is_grad_enabled():
        total = total_divergence(logits, target, sigmoid, temperature)
    else:
        total = DivergenceWithGradient.apply(logits, target, sigmoid, temperature)
    return total / target.normalizer() * temperature**2


def total_divergence(logits: Tensor, target: Target, sigmoid: bool, temperature: float) -> Tensor:
    """Return the weighted sum of what :func:`target_cross_entropy` averages, a scalar."""
    return weighted_divergence(logits, target, sigmoid, temperature).sum()


def divergences(logits: Tensor, target: Target, sigmoid: bool, temperature: float = 1.0) -> Tensor:
    """Return what :func:`target_cross_entropy` averages, weighted, summed over the predictions of each sample, (B, )."""
    return weighted_divergence(logits, target, sigmoid, temperature).flatten(1).sum(dim=1)


def weighted_divergence(logits: Tensor, target: Target, sigmoid: bool, temperature: float) -> Tensor:
    """Return what :func:`target_cross_entropy` averages, weighted, of the shape of ``logits``."""
    logits = logits.float() / temperature
    q = target.probability.float()
    if sigmoid:
        divergence = -(q * F.logsigmoid(logits) + (1 - q) * F.logsigmoid(-logits))
        if target.focus:
            # No entropy is taken away: the factor makes the minimum 0.
            distance = (q - logits.sigmoid()).abs()
            if target.focus < 1:
                # A root has no gradient at 0, which saturated predictions reach.
                distance = distance.clamp(min=torch.finfo(distance.dtype).tiny)
            divergence = divergence * distance**target.focus
        else:
            divergence = divergence + torch.xlogy(q, q) + torch.xlogy(1 - q, 1 - q)
    else:
        divergence = torch.xlogy(q, q) - q * logits.log_softmax(dim=1)
    return target.apply_weight(divergence)


class DivergenceWithGradient(torch.autograd.Function):
    """:func:`total_divergence` that keeps its gradient by the logits and nothing else."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Target, sigmoid: bool, temperature: float) -> Tensor:
        """Sum over pieces of :data:`CHUNK` numbers, and keep the gradient."""
        # In single precision, whatever the logits are: a loss scaled against underflow scales what is kept here.
        ctx.dtype, logits = logits.dtype, logits.float()
        gradient, total = torch.empty_like(logits), logits.new_zeros(())
        # Predictions of an image, (B, K), are cut between images, dense ones between predictions.
        dim = 2 if logits.ndim > 2 else 0
        rows = max(CHUNK * logits.shape[dim] // max(logits.numel(), 1), 1)
        q = target.probability.expand_as(logits)
        weight = None if target.weight is None else target.weight.expand(len(logits), 1, *logits.shape[2:])
        for start in range(0, logits.shape[dim], rows):
            size = min(rows, logits.shape[dim] - start)
            own, q_piece, slot = (whole.narrow(dim, start, size) for whole in (logits, q, gradient))
            counts = None if weight is None else weight.narrow(dim, start, size)
            with torch.enable_grad():
                own = own.detach().requires_grad_()
                value = total_divergence(own, replace(target, probability=q_piece, weight=counts), sigmoid, temperature)
            slot.copy_(torch.autograd.grad(value, own)[0])
            total += value.detach()
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """Return the gradient by the logits; nothing else has one."""
        (gradient,) = ctx.saved_tensors
        return (grads[0] * gradient).to(ctx.dtype), None, None, None
