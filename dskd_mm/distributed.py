"""What processes tell each other, for the core and everything above it."""

import torch
from mmengine.model import is_model_wrapper
from torch import Tensor, nn


def bare_model(model: nn.Module) -> nn.Module:
    """Return a run's model without what wraps it in distributed training."""
    return model.module if is_model_wrapper(model) else model  # type: ignore[return-value]


def is_parallel() -> bool:
    """Whether there are processes to talk to."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def mean_over_ranks(value: Tensor) -> Tensor:
    """A tensor averaged over all processes; the tensor itself stays as it is.

    Losses divided by such a count have the gradient of the joined batch.
    """
    value = value.clone()
    if is_parallel():
        torch.distributed.all_reduce(value)
        value /= torch.distributed.get_world_size()
    return value


def std_over_ranks(value: Tensor) -> Tensor:
    """The standard deviation of all elements of the joined batch, a scalar.

    Processes may have different numbers of elements, or none.
    """
    if not is_parallel():
        return value.std()
    count = value.numel()
    mean = value.sum() / max(count, 1)
    # Squares of what is left without the mean: no cancellation, and the means of processes differ little.
    moments = torch.stack([torch.full_like(mean, float(count)), mean * count, (value - mean).square().sum() + count * mean**2])
    moments = moments.double() if value.device.type != 'mps' else moments
    torch.distributed.all_reduce(moments)
    total, first, second = moments
    return ((second - first**2 / total).clamp(min=0) / (total - 1)).sqrt().to(value.dtype)
