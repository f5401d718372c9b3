"""Diffusion of the levels of a pyramid, packed into one tensor."""

from collections.abc import Callable

import torch
from torch import Tensor

from dskd_mm.diffusion.schedule import NoiseModel
from dskd_mm.features.pyramid import Pyramid


def on_levels(denoiser: NoiseModel, pyramid: Pyramid) -> NoiseModel:
    """Return a denoiser of maps (B, C, H, W) as one of packed maps (B, C, N), the same for all levels."""
    return lambda packed, timestep: pyramid.map(lambda level: denoiser(level, timestep), packed)


def mixing_weights(adapter: Callable[[Tensor], Tensor], pyramid: Pyramid, packed: Tensor) -> Tensor:
    r"""Return the :math:`\gamma` of a noise adapter for packed maps (B, C, N): one for an image's level, as (B, 1, N)."""
    return pyramid.map(lambda level: adapter(level).expand(-1, 1, *level.shape[2:]), packed)


def draw_like(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Draw standard normal noise of a tensor's shape, float32."""
    return torch.randn(tensor.shape, generator=generator, device=tensor.device)
