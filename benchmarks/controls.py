"""Stand-ins for the diffusion that tell what of it matters, by the names that benchmarks/variants.py gives them."""

from typing import Any

import torch
from torch import Tensor

from dskd_mm.diffusion import FeatureDiffusion, draw_like
from dskd_mm.features import Pyramid


class RandomShift(FeatureDiffusion):
    """Moves features as far as the diffusion would, location by location, in a random direction."""

    def denoise(
        self, start: Tensor, pyramid: Pyramid, generator: torch.Generator, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor | None]:
        """See :meth:`FeatureDiffusion.denoise`."""
        denoised, gamma = super().denoise(start, pyramid, generator, *args, **kwargs)
        direction = torch.nn.functional.normalize(draw_like(start, generator), dim=1)
        return start + (denoised - start).norm(dim=1, keepdim=True) * direction, gamma
