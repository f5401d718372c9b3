"""What processes tell each other, for the core and everything above it."""

import torch
from torch import Tensor


def mean_over_ranks(value: Tensor) -> Tensor:
    """A tensor averaged over all processes; the tensor itself stays as it is.

    Losses divided by such a count have the gradient of the joined batch.
    """
    value = value.clone()
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(value)
        value /= torch.distributed.get_world_size()
    return value
