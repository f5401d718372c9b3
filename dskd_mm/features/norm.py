"""Normalisation layers by name, for the modules of the core."""

import math

from torch import nn


def build_norm(norm: str | None, channels: int) -> nn.Module:
    """Build a 2-d normalisation layer.

    Args:
        norm (str, optional): 'BN', 'SyncBN', 'GN' (at most 32 groups) or None for none.
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
        return nn.GroupNorm(math.gcd(32, channels), channels)
    raise ValueError(f"norm must be 'BN', 'SyncBN', 'GN' or None, but got {norm!r}.")
