"""Diffusion of the levels of a pyramid, packed into one tensor."""

from functools import partial

import torch
from torch import Tensor, nn

from dskd_mm.compiled import under_compiler
from dskd_mm.diffusion.schedule import NoiseModel
from dskd_mm.features.pyramid import MapFunction, Pyramid
from dskd_mm.features.widths import level_modules


def on_levels(denoiser: nn.Module, pyramid: Pyramid, method: str = '__call__') -> NoiseModel:
    """Return a denoiser of maps (B, C, H, W), the same for all levels of a width, or a method of it, as one of packed maps."""
    each = [getattr(own, method) for own in level_modules(denoiser, len(pyramid.sizes))]

    def predict(packed: Tensor, timestep: int | Tensor) -> Tensor:
        def at(own: NoiseModel) -> MapFunction:
            return lambda level: own(level, timestep)

        return pyramid.map([at(own) for own in each], packed)

    compiled = under_compiler(predict)  # one graph for all levels, not one for each size
    if compiled is predict:
        return predict

    def predict_at(packed: Tensor, timestep: int | Tensor) -> Tensor:
        # Of each number a compiler makes a graph of its own.
        steps = timestep if isinstance(timestep, Tensor) else torch.full((len(packed),), timestep, device=packed.device)
        return compiled(packed, steps)

    return predict_at


def mixing_weights(adapter: nn.Module, pyramid: Pyramid, packed: Tensor) -> Tensor:
    r"""Return the :math:`\gamma` of a noise adapter for packed maps: one for an image's level, as (B, 1, N)."""

    def spread(own: nn.Module, level: Tensor) -> Tensor:
        return own(level).expand(-1, 1 if pyramid.channels is None else level.shape[1], *level.shape[2:])

    return pyramid.map([partial(spread, own) for own in level_modules(adapter, len(pyramid.sizes))], packed)


def draw_like(tensor: Tensor, generator: torch.Generator) -> Tensor:
    """Draw standard normal noise of a tensor's shape, float32."""
    return torch.randn(tensor.shape, generator=generator, device=tensor.device)
