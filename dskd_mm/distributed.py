"""Statistics of the joined batch of all processes."""

import torch
from mmengine.dist import all_reduce, is_distributed
from mmengine.model import is_model_wrapper
from torch import Tensor, nn


def bare_model(model: nn.Module) -> nn.Module:
    """Return a run's model without what wraps it in distributed training."""
    return model.module if is_model_wrapper(model) else model  # type: ignore[return-value]


def mean_over_ranks(value: Tensor) -> Tensor:
    """Return a tensor averaged over all processes; the tensor itself stays as it is.

    Losses divided by such a count have the gradient of the joined batch.
    """
    value = value.clone()
    all_reduce(value, 'mean')
    return value


def std_over_ranks(value: Tensor) -> Tensor:
    """Return the standard deviation of all elements of the joined batch, a scalar.

    Processes may have different numbers of elements, or none.
    """
    if not is_distributed():
        return value.std()
    count = value.numel()
    mean = value.sum() / max(count, 1)
    # Squares of what is left without the mean: no cancellation, and the means of processes differ little.
    moments = torch.stack([torch.full_like(mean, float(count)), mean * count, (value - mean).square().sum() + count * mean**2])
    moments = moments.double() if value.device.type != 'mps' else moments
    all_reduce(moments)
    total, first, second = moments
    return ((second - first**2 / total).clamp(min=0) / (total - 1)).sqrt().to(value.dtype)


def channel_moments(value: Tensor, joined: bool) -> tuple[Tensor, Tensor]:
    """Return mean and variance of each channel, (1, C, 1) both.

    Args:
        value (Tensor): (B, C, N); processes may have different B and N, or nothing.
        joined (bool): Whether they are those of the joined batch: all processes then have to ask.
    """
    count = value.shape[0] * value.shape[2]
    mean = value.sum(dim=(0, 2), keepdim=True) / max(count, 1)
    squares = (value - mean).square().sum(dim=(0, 2), keepdim=True)
    if not joined or not is_distributed():
        return mean, squares / max(count, 1)
    moments = torch.stack([torch.full_like(mean, float(count)), mean * count, squares + count * mean**2])
    moments = moments.double() if value.device.type != 'mps' else moments
    all_reduce(moments)
    total, first, second = moments
    center = first / total.clamp(min=1)
    return center.to(value.dtype), (second / total.clamp(min=1) - center**2).clamp(min=0).to(value.dtype)


def joined_mean(mean: Tensor, amount: Tensor) -> tuple[Tensor, Tensor]:
    """Return the mean over all processes of means over different amounts, and their total amount.

    Args:
        mean (Tensor): This process's mean, (N, ).
        amount (Tensor): Over how much it is taken, (1, ); 0 takes part, or the others would wait.
    """
    if not is_distributed():
        return mean, amount
    shared = torch.cat([mean * amount, amount])
    all_reduce(shared)
    return shared[:-1] / shared[-1:].clamp(min=1e-12), shared[-1:]
