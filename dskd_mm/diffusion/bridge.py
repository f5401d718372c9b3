"""A way from the student's feature to the teacher's, without noise: flow matching."""

import torch
from torch import Tensor

from dskd_mm.diffusion.feature_diffusion import FeatureDiffusion, GuidanceFactory
from dskd_mm.diffusion.levels import on_levels
from dskd_mm.features.pyramid import Pyramid
from dskd_mm.functional import mean_squared_error
from dskd_mm.registry import MODELS


@MODELS.register_module()
class FeatureBridge(FeatureDiffusion):
    r"""Leads from the student's feature z to the prior's f in a few steps (flow matching, Lipman et al. 2023).

    Between both lies :math:`x_\tau = (1-\tau) f + \tau z`. The network of the denoiser learns the velocity :math:`z - f` there,
    a regression. Sampling begins at z itself, :math:`\tau=1`, and walks to :math:`\tau=0` in equal steps. In each the end is
    predicted, :math:`\hat f = x_\tau - \tau v_\theta(x_\tau, \tau)`, and shifted by the guidance there, :math:`s\,G(\hat f)`.
    With one step it is a regression of the teacher's feature.

    It is of use with ``prior='teacher'``. Of the sampler's arguments ``steps`` and ``scale`` count; there is no noise.
    """

    def loss(self, prior: Tensor, pyramid: Pyramid, generator: torch.Generator, start: Tensor | None = None) -> Tensor:
        """Return the error of the velocity; see :meth:`FeatureDiffusion.loss`."""
        self._update_std(prior)
        clean, begin = self._ends(prior, start)
        steps = self.schedule.draw_timesteps(len(prior), generator)
        way = ((steps + 1) / self.schedule.num_train_steps)[:, None, None]
        predicted = on_levels(self.denoiser, pyramid, 'network')(torch.lerp(clean, begin, way), steps)
        return mean_squared_error(predicted, begin - clean)

    @torch.no_grad()
    def trivial_error(self, prior: Tensor, start: Tensor | None = None) -> Tensor:
        """Return the error of a network that stays where it is, a scalar."""
        return mean_squared_error(*self._ends(prior, start))

    def denoise(
        self,
        start: Tensor,
        pyramid: Pyramid,
        generator: torch.Generator,
        guidance: GuidanceFactory | None = None,
        trajectory: list[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Walk from latents to the prior's; see :meth:`FeatureDiffusion.denoise`."""
        scale, steps = self.scale, self.sampler.steps
        gradient = self._gradient(guidance) if self.sampler.scale else None
        network, x = on_levels(self.denoiser, pyramid, 'network'), start / scale
        for left in range(steps, 0, -1):
            way = left / steps
            end = x - way * network(x, round(way * self.schedule.num_train_steps) - 1).float()
            if gradient is not None:
                end = end + self.sampler.scale * gradient(end)
            if trajectory is not None:
                trajectory.append(end * scale)
            x = torch.lerp(end, x, (left - 1) / left)
        return x * scale, None

    def _ends(self, prior: Tensor, start: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return where the way leads and where it begins, divided by the prior's spread."""
        if start is None:
            raise ValueError('FeatureBridge expects the features where its way begins, start, but got None.')
        return prior / self.scale, start.detach() / self.scale
