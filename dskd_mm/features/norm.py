"""Normalisation layers by name, for the modules of the core."""

import math

from torch import nn


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
        return nn.BatchNorm2d(channels)
    if norm == 'SyncBN':
        return nn.SyncBatchNorm(channels)
    if norm == 'GN':
        groups = math.gcd(32, channels)
        # A group of one channel would turn a vector (B, C, 1, 1) into zeros: each value is its own mean.
        while groups > 1 and channels // groups < 4:
            groups //= 2
        return nn.GroupNorm(groups, channels)
    raise ValueError(f"norm must be 'BN', 'SyncBN', 'GN' or None, but got {norm!r}.")
