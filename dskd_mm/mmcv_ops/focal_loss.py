"""Sigmoid and softmax focal loss in closed form, element by element.

A class weight is that of the target: a target outside the classes, the background, weighs 1.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from dskd_mm.mmcv_ops.precision import widened

TINY = torch.finfo(torch.float32).tiny  # no logarithm is taken of less; in float16 it is 0


def target_weight(weight: Tensor, target: Tensor, like: Tensor) -> Tensor:
    """Return the weight of each row's target, (N,)."""
    if not weight.numel():
        return like.new_ones(len(target))
    inside = (target >= 0) & (target < len(weight))
    return torch.where(inside, weight.to(like.dtype)[target.clamp(0, len(weight) - 1)], 1)


def is_target(target: Tensor, classes: int) -> Tensor:
    return target[:, None] == torch.arange(classes, device=target.device)


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Write the loss of each logit (N, K) to `output`; a target of K or more is background."""
    x = widened(input)
    p = x.sigmoid()
    positive = -alpha * (1 - p) ** gamma * p.clamp(min=TINY).log()
    negative = -(1 - alpha) * p**gamma * (1 - p).clamp(min=TINY).log()
    loss = torch.where(is_target(target, x.shape[1]), positive, negative)
    output.copy_(loss * target_weight(weight, target, x)[:, None])


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Write the derivative of each logit's loss to `grad_input` (N, K)."""
    x = widened(input)
    p = x.sigmoid()
    q = 1 - p
    positive = -alpha * q**gamma * (q - gamma * p * p.clamp(min=TINY).log())
    negative = -(1 - alpha) * p**gamma * (gamma * q * q.clamp(min=TINY).log() - p)
    gradient = torch.where(is_target(target, x.shape[1]), positive, negative)
    grad_input.copy_(gradient * target_weight(weight, target, x)[:, None])


def probability_of_target(softmax: Tensor, target: Tensor) -> Tensor:
    return softmax.gather(1, target.clamp(0, softmax.shape[1] - 1)[:, None])[:, 0]


def softmax_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Write the loss of each row of probabilities (N, K) to `output` (N,); 0 where the target is negative."""
    softmax = widened(input)
    p = probability_of_target(softmax, target)
    loss = -alpha * (1 - p) ** gamma * p.clamp(min=TINY).log() * target_weight(weight, target, softmax)
    output.copy_(torch.where(target >= 0, loss, 0))


def softmax_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, buff: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Write the derivative by the logits, given their softmax (N, K), to `grad_input`; `buff` (N,) takes a part of it."""
    softmax = widened(input)
    p = probability_of_target(softmax, target)
    q = 1 - p
    part = alpha * (gamma * q ** (gamma - 1) * p * p.clamp(min=TINY).log() - q**gamma)
    part = torch.where(target >= 0, part * target_weight(weight, target, softmax), 0)
    buff.copy_(part)
    one_hot = F.one_hot(target.clamp(min=0), softmax.shape[1])
    grad_input.copy_(part[:, None] * (one_hot - softmax))
