"""A light diffusion model of features: learn to denoise a prior, and denoise what is like it."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from dskd_mm.compiled import under_compiler
from dskd_mm.diffusion.autoencoder import FeatureAutoEncoder
from dskd_mm.diffusion.denoiser import DiffusionDenoiser, noise_prediction_loss, table_rows
from dskd_mm.diffusion.levels import draw_like, mixing_weights, on_levels
from dskd_mm.diffusion.noise_adapter import NoiseAdapter
from dskd_mm.diffusion.sampler import Guidance, TeacherGuidedSampler
from dskd_mm.diffusion.schedule import DDIMSchedule
from dskd_mm.distributed import std_over_ranks
from dskd_mm.features.pyramid import Pyramid, per_location
from dskd_mm.features.widths import Channels, level_modules, per_width
from dskd_mm.functional import mean
from dskd_mm.registry import MODELS, build

GuidanceFactory = Callable[[Tensor, nn.Conv2d | None], Guidance]
"""Called with the scale of features and the decoder of latents, returns the guidance in the space that is diffused."""


@MODELS.register_module()
class FeatureDiffusion(nn.Module):
    """The diffusion of features: denoiser, schedule and sampler, with an autoencoder and a noise adapter where asked for.

    All tensors are packed pyramids (B, C, N), see :class:`~dskd_mm.features.Pyramid`.

    Args:
        channels (int | tuple[int, ...]): Channels C of the prior's features, or those of each level: then there is a denoiser
            for each width.
        kernel_size (int): Of denoiser and noise adapter: 3 for maps, 1 for vectors. Defaults to 3.
        norm (str): Norm of denoiser, noise adapter and autoencoder. Defaults to 'BN'.
        denoiser (dict, optional): Arguments of :class:`DiffusionDenoiser`. Defaults to None.
        schedule (dict, optional): Arguments of :class:`DDIMSchedule`. Defaults to None.
        sampler (dict, optional): Arguments of :class:`TeacherGuidedSampler`; with ``noise='adapter'`` a
            :class:`NoiseAdapter` is built. Defaults to None.
        autoencoder (dict, optional): ``dict(latent_channels=...)`` to diffuse in a narrow latent. Defaults to None: none.
        normalize (bool): Whether features are divided by the running standard deviation of the prior, for the noise has unit
            variance. Defaults to False.
        reduction (str): How levels make one loss: 'mean' over all locations, or 'sum' of the levels' own means (DiffKD).
            Defaults to 'mean'.

    Raises:
        ValueError: If schedule, sampler and denoiser do not fit each other.
    """

    std: Tensor

    def __init__(
        self,
        channels: Channels,
        kernel_size: int = 3,
        norm: str = 'BN',
        denoiser: dict | None = None,
        schedule: dict | None = None,
        sampler: dict | None = None,
        autoencoder: dict | None = None,
        normalize: bool = False,
        reduction: str = 'mean',
    ) -> None:
        super().__init__()
        if reduction not in ('mean', 'sum'):
            raise ValueError(f"reduction of FeatureDiffusion must be 'mean' or 'sum', but got {reduction!r}.")
        self.normalize = normalize
        self.reduction = reduction
        self.register_buffer('std', torch.zeros(()), persistent=normalize)
        network: dict[str, Any] = dict(kernel_size=kernel_size, norm=norm)
        self.autoencoder: Any = None
        if autoencoder:
            if isinstance(channels, tuple):
                raise ValueError(
                    f'An autoencoder expects levels of one width, but they have {channels} channels: leave autoencoder out.'
                )
            self.autoencoder = build(FeatureAutoEncoder, dict(norm=norm) | autoencoder, channels=channels)
        self.schedule = build(DDIMSchedule, schedule)
        self.sampler = build(TeacherGuidedSampler, sampler)
        self.schedule.timesteps(self.sampler.steps, self.sampler.start)  # refuses what does not fit, before any training
        denoiser = network | (denoiser or {})
        if denoiser.get('time') == 'film':
            denoiser['schedule'] = self.schedule
        else:
            denoiser['num_embeddings'] = table_rows(self.schedule, denoiser.get('num_embeddings'))
        self.denoiser = per_width(partial(build, DiffusionDenoiser, denoiser), channels=self.latent_channels(channels))
        self.noise_adapter: Any = None
        if self.sampler.noise == 'adapter':
            network |= dict(norm=denoiser['norm'])
            make = partial(build, NoiseAdapter, network)
            self.noise_adapter = per_width(make, channels=self.latent_channels(channels))

    def latent_channels(self, channels: Channels) -> Channels:
        """Return the width that is diffused of features of so many channels."""
        return channels if self.autoencoder is None else self.autoencoder.decoder.in_channels

    @property
    def scale(self) -> Tensor:
        """Return the spread by which features are divided, a scalar; 1 without ``normalize``."""
        return self.std.clone() if self.normalize else torch.ones_like(self.std)

    def encode(self, feature: Tensor) -> Tensor:
        """Map features (B, C, N) to the latent that is diffused; themselves without an autoencoder."""
        return feature if self.autoencoder is None else per_location(self.autoencoder.encode, feature).float()

    def decode(self, latent: Tensor) -> Tensor:
        """Map what was denoised back to features (B, C, N); see :meth:`encode`."""
        return latent if self.autoencoder is None else per_location(self.autoencoder.decode, latent).float()

    def encode_prior(self, prior: Tensor) -> tuple[Tensor, Tensor | None]:
        """Encode the prior's features and judge the reconstruction.

        Returns:
            tuple[Tensor, Tensor | None]: The latent (B, C', N), detached, and the reconstruction error by which the
            autoencoder learns, a scalar; the prior itself and None without an autoencoder.
        """
        if self.autoencoder is None:
            return prior, None
        latent, error = self.autoencoder(prior[..., None])
        return latent[..., 0].float(), error

    def loss(self, prior: Tensor, pyramid: Pyramid, generator: torch.Generator, start: Tensor | None = None) -> Tensor:
        """Return the error of the noise prediction, by which the denoiser learns, and follow the prior's spread.

        Args:
            prior (Tensor): Latents of the prior (B, C', N), see :meth:`encode_prior`.
            pyramid (Pyramid): Its levels.
            generator (torch.Generator): Draws timesteps (one for each image) and noise.
            start (Tensor, optional): The latents that will be denoised, (B, C', N). Not needed here, but by a
                :class:`~dskd_mm.diffusion.FeatureBridge`. Defaults to None.

        Returns:
            Tensor: A scalar.
        """
        self._update_std(prior)
        steps = self.schedule.draw_timesteps(len(prior), generator)
        clean = prior / self.scale
        if self.reduction == 'mean':
            noise = draw_like(prior, generator)
            return noise_prediction_loss(on_levels(self.denoiser, pyramid), self.schedule, clean, noise, steps)
        each = map(under_compiler, level_modules(self.denoiser, len(pyramid.sizes)))
        levels = [
            noise_prediction_loss(denoiser, self.schedule, level, draw_like(level, generator), steps)
            for denoiser, level in zip(each, pyramid.unpack(clean), strict=True)
        ]
        return torch.stack(levels).sum()

    def denoise(
        self,
        start: Tensor,
        pyramid: Pyramid,
        generator: torch.Generator,
        guidance: GuidanceFactory | None = None,
        trajectory: list[Tensor] | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Denoise latents. Whether a graph is kept is the caller's choice (``torch.no_grad``).

        Args:
            start (Tensor): Latents (B, C', N), see :meth:`encode`.
            pyramid (Pyramid): Their levels.
            generator (torch.Generator): Draws the noise of the start.
            guidance (Callable, optional): See :data:`GuidanceFactory`. Defaults to None: no guidance.
            trajectory (list[Tensor], optional): Gets the predicted clean latent of every step appended. Defaults to None.

        Returns:
            tuple[Tensor, Tensor | None]: The denoised latents and the mixing weights of the noise adapter, if there is one.
        """
        scale = self.scale
        start = start / scale
        gamma = None if self.noise_adapter is None else mixing_weights(self.noise_adapter, pyramid, start)
        gradient = self._gradient(guidance)
        noise = draw_like(start, generator)
        steps: list[Tensor] | None = None if trajectory is None else []
        denoiser = on_levels(self.denoiser, pyramid)
        denoised = self.sampler(denoiser, self.schedule, start, noise, gradient, gamma, steps) * scale
        if trajectory is not None and steps is not None:
            trajectory.extend(step * scale for step in steps)
        return denoised, gamma

    def _gradient(self, guidance: GuidanceFactory | None) -> Guidance | None:
        """Return the guidance in the space that is diffused."""
        decoder = None if self.autoencoder is None else self.autoencoder.decoder
        return None if guidance is None else guidance(self.scale, decoder)

    @torch.no_grad()
    def trivial_error(self, prior: Tensor, start: Tensor | None = None) -> Tensor:
        """Return what :meth:`loss` is on average for a denoiser that has learned nothing, a scalar; see
        :meth:`DDIMSchedule.trivial_error`. The arguments are those of :meth:`loss`."""
        return self.schedule.trivial_error(mean((prior / self.scale).square()))

    @torch.no_grad()
    def _update_std(self, prior: Tensor) -> None:
        """Follow the spread of the prior, a running average over batches."""
        if not self.normalize:
            return
        batch = std_over_ranks(prior).clamp(min=1e-6)
        # One batch that is not finite must not stay in the average for good.
        batch = torch.where(torch.isfinite(batch), batch, self.std)
        first = (self.std == 0).to(batch.dtype)
        # Features that are only evaluated move nothing, but something must divide the very first.
        self.std.lerp_(batch, torch.clamp(first, min=0.01) if self.training else first)
