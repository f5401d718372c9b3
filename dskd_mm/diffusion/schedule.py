"""The noise schedule of DDPM and the deterministic sampling steps of DDIM."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from dskd_mm.registry import MODELS

NoiseModel = Callable[[Tensor, int | Tensor], Tensor]
"""Predicts the noise in features (B, C, ...) at a timestep, or one timestep per sample."""


@MODELS.register_module()
class DDIMSchedule(nn.Module):
    r"""Linear noise schedule with DDIM steps (Ho et al. 2020; Song et al. 2021).

    Symbols and names:

    ======================= ===================================================================
    :math:`\beta_t`         ``torch.linspace(beta_start, beta_end, num_train_steps)``
    :math:`\bar\alpha_t`    ``alphas_cumprod[t]``, the cumulative product of :math:`1-\beta`
    :math:`x_0`             ``sample`` of :meth:`add_noise`, a clean feature
    :math:`x_t`             ``noisy`` of :meth:`step`, its noised version
    :math:`\epsilon_\theta` ``noise`` of :meth:`step`, the predicted noise
    ======================= ===================================================================

    The tables are float32 whatever the precision of the features: under half precision :math:`1-\bar\alpha_0` is zero.
    They are not part of the state dict, for they follow from the arguments.

    Args:
        num_train_steps (int): Length of the schedule. Defaults to 1000.
        beta_start (float): First :math:`\beta`. Defaults to 1e-4.
        beta_end (float): Last :math:`\beta`. Defaults to 0.02.

    Raises:
        ValueError: If the betas are not ``0 < beta_start <= beta_end < 1`` or there is no step.
    """

    alphas_cumprod: Tensor

    def __init__(self, num_train_steps: int = 1000, beta_start: float = 1e-4, beta_end: float = 0.02) -> None:
        super().__init__()
        if num_train_steps < 1 or not 0 < beta_start <= beta_end < 1:
            raise ValueError(
                'DDIMSchedule expects num_train_steps >= 1 and 0 < beta_start <= beta_end < 1, '
                f'but got num_train_steps={num_train_steps}, beta_start={beta_start}, beta_end={beta_end}.'
            )
        self.num_train_steps = num_train_steps
        # On the CPU whatever torch's default device is: its numbers are read below.
        betas = torch.linspace(beta_start, beta_end, num_train_steps, dtype=torch.float32, device='cpu')
        self.register_buffer('alphas_cumprod', torch.cumprod(1 - betas, dim=0), persistent=False)
        # Sampling steps take their factors from here: as numbers they cost no operation on the device, and no wait for it.
        self._levels: list[float] = self.alphas_cumprod.tolist()

    def timesteps(self, steps: int, start: float = 0.5) -> list[int]:
        """Return the timesteps of a sampling run, noisiest first.

        The schedule is cut evenly (the "leading" spacing of diffusers) and only its part below ``start`` is used, as DiffKD
        does: a student's feature is noisy already, so sampling begins in the middle.

        Args:
            steps (int): Number of sampling steps.
            start (float): Where to begin, as a share of the schedule; the first step lies one stride below. Defaults to
                0.5.

        Returns:
            list[int]: For instance ``[400, 300, 200, 100, 0]`` with 5 steps from 0.5 on 1000.
        """
        if steps < 1 or not 0 < start <= 1:
            raise ValueError(f'Expected steps >= 1 and 0 < start <= 1, but got steps={steps}, start={start}.')
        stride = int(self.num_train_steps * start) // steps
        if stride < 1:
            raise ValueError(
                f'{steps} sampling steps do not fit into the first {start:.0%} of {self.num_train_steps} training '
                'steps: use fewer steps or a later start.'
            )
        return [i * stride for i in reversed(range(steps))]

    def draw_timesteps(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw timesteps for training, (count, ), on the generator's device."""
        return torch.randint(self.num_train_steps, (count,), generator=generator, device=generator.device)

    def noise_level(self, timestep: int) -> tuple[float, float]:
        r"""Return the factors of signal and noise at one timestep.

        They are :math:`\sqrt{\bar\alpha_t}` and :math:`\sqrt{1-\bar\alpha_t}`.
        """
        alpha = self._levels[timestep]
        return math.sqrt(alpha), math.sqrt(1 - alpha)

    def _noise_levels(self, timesteps: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        alpha = self.alphas_cumprod[timesteps].reshape(-1, *[1] * (like.ndim - 1))
        return alpha.sqrt(), (1 - alpha).sqrt()

    def add_noise(self, sample: Tensor, noise: Tensor, timestep: int | Tensor) -> Tensor:
        r"""Draw :math:`x_t = \sqrt{\bar\alpha_t}\,x_0 + \sqrt{1-\bar\alpha_t}\,\epsilon` (DDPM eq. 4).

        Args:
            sample (Tensor): Clean features of shape (B, C, ...).
            noise (Tensor): Standard normal noise of the same shape.
            timestep (int | Tensor): One timestep, or one per sample of shape (B, ).

        Returns:
            Tensor: The noised features, of the shape of ``sample``.
        """
        if isinstance(timestep, int):
            signal, sigma = self.noise_level(timestep)
            return torch.add(signal * at_least_float32(sample), noise, alpha=sigma)
        signals, sigmas = self._noise_levels(timestep, sample)
        return signals * sample + sigmas * noise

    def predict_clean(self, noisy: Tensor, noise: Tensor, timestep: int | Tensor) -> Tensor:
        r"""Return the clean feature :math:`\hat x_0` that a noise prediction implies (DDIM eq. 9).

        Args:
            noisy (Tensor): Noised features :math:`x_t` of shape (B, C, ...).
            noise (Tensor): Predicted noise of the same shape.
            timestep (int | Tensor): One timestep, or one per sample of shape (B, ).

        Returns:
            Tensor: Clean features of the same shape.
        """
        if isinstance(timestep, int):
            signal, sigma = self.noise_level(timestep)
            return torch.sub(at_least_float32(noisy), noise, alpha=sigma) / signal
        signals, sigmas = self._noise_levels(timestep, noisy)
        return (noisy - sigmas * noise) / signals

    def noise_of_velocity(self, noisy: Tensor, velocity: Tensor, timestep: int | Tensor) -> Tensor:
        r"""Return the noise that a prediction of the velocity implies, :math:`\sqrt{1-\bar\alpha_t}x_t + \sqrt{\bar\alpha_t}v`.

        The velocity is :math:`v = \sqrt{\bar\alpha_t}\epsilon - \sqrt{1-\bar\alpha_t}x_0` (Salimans & Ho 2022).

        Args:
            noisy (Tensor): Noised features :math:`x_t` of shape (B, C, ...).
            velocity (Tensor): Predicted velocity of the same shape.
            timestep (int | Tensor): One timestep, or one per sample of shape (B, ).

        Returns:
            Tensor: Noise of the same shape.
        """
        signal: Any
        sigma: Any
        signal, sigma = self.noise_level(timestep) if isinstance(timestep, int) else self._noise_levels(timestep, noisy)
        return sigma * at_least_float32(noisy) + signal * velocity

    def trivial_error(self, power: Tensor) -> Tensor:
        r"""Return the error of a noise prediction that takes the feature itself for noise, the mean over all timesteps.

        A denoiser that has learned is below it: :math:`\epsilon_\theta = \sqrt{1-\bar\alpha_t}\,x_t`.

        Args:
            power (Tensor): Mean square of the clean features, a scalar.
        """
        alpha = self.alphas_cumprod
        return (alpha * (1 - alpha)).mean() * power + alpha.square().mean()

    def step(self, noisy: Tensor, noise: Tensor, timestep: int, previous: int | None) -> Tensor:
        r"""Take one deterministic DDIM step (:math:`\eta=0`, DDIM eq. 12).

        Args:
            noisy (Tensor): :math:`x_t` of shape (B, C, ...).
            noise (Tensor): Predicted noise of the same shape.
            timestep (int): :math:`t`.
            previous (int, optional): The less noisy timestep to go to; None for the end, where :math:`\bar\alpha=1`.

        Returns:
            Tensor: The feature at ``previous``, of the same shape.
        """
        if previous is None:
            return self.predict_clean(noisy, noise, timestep)
        signal, sigma = self.noise_level(timestep)
        next_signal, next_sigma = self.noise_level(previous)
        # The two halves of the step in one: noisy / signal is the clean feature but for its noise.
        ratio = next_signal / signal
        return torch.add(ratio * at_least_float32(noisy), noise, alpha=next_sigma - ratio * sigma)


def at_least_float32(value: Tensor) -> Tensor:
    """Widen half precision: the ends of the schedule need more digits."""
    return value.to(torch.promote_types(value.dtype, torch.float32))
