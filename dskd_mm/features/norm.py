"""Normalisation layers by name, for the modules of the core."""

import math

from torch import Tensor, nn


class SingleVectorError(ValueError):
    """A batch norm was to be trained on one vector."""


class BatchNorm2d(nn.BatchNorm2d):
    """PyTorch's, with an error of its own where there is nothing to take statistics over."""

    def forward(self, input: Tensor) -> Tensor:
        """Normalise maps (B, C, H, W).

        Raises:
            SingleVectorError: If it trains on a single vector.
        """
        if self.training and input.numel() == input.shape[1]:
            raise SingleVectorError(f'A batch norm expects several vectors to train, but got one, {tuple(input.shape)}.')
        return super().forward(input)


def build_norm(norm: str | None, channels: int) -> nn.Module:
    """Build a 2-d normalisation layer.

    Args:
        norm (str, optional): 'BN', 'SyncBN', 'GN' (at most 32 groups of at least 4 channels) or None for none.
        channels (int): Number of channels.

    Returns:
        nn.Module: The layer.

    Raises:
        ValueError: If the name is unknown.
    """
    if norm is None:
        return nn.Identity()
    if norm == 'BN':
        return BatchNorm2d(channels)
    if norm == 'SyncBN':
        return nn.SyncBatchNorm(channels)
    if norm == 'GN':
        groups = math.gcd(32, channels)
        # A group of one channel would turn a vector (B, C, 1, 1) into zeros: each value is its own mean.
        while groups > 1 and channels // groups < 4:
            groups //= 2
        return nn.GroupNorm(groups, channels)
    raise ValueError(f"norm must be 'BN', 'SyncBN', 'GN' or None, but got {norm!r}.")
