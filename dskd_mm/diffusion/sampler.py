"""Sampling from a denoiser under the guidance of a teacher's classifier."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from dskd_mm.diffusion.schedule import DDIMSchedule, NoiseModel
from dskd_mm.registry import MODELS

Guidance = Callable[[Tensor], Tensor]
"""Maps features (B, C, ...) to the gradient of their log-likelihood, of the same shape."""


@MODELS.register_module()
class TeacherGuidedSampler(nn.Module):
    r"""DDIM sampling with classifier guidance (Dhariwal & Nichol 2021, algorithm 2).

    In every step the predicted noise is shifted against the gradient G of the classifier's log-likelihood,
    :math:`\hat\epsilon = \epsilon_\theta(x_t, t) - \sqrt{1-\bar\alpha_t}\, s\, G`, then a plain DDIM step follows. With the
    five default steps the shifts add up to about :math:`1.45\, s\, G` in the clean feature.

    Args:
        steps (int): Number of sampling steps. Defaults to 5.
        start (float): Where sampling begins, as a share of the schedule. Defaults to 0.5.
        scale (float): Guidance strength s; 0 turns guidance off. Defaults to 1.0.
        guidance_point (str): Where G is evaluated: 'noisy' for :math:`x_t`, 'clean' for the predicted :math:`\hat x_0` with
            the chain factor :math:`1/\sqrt{\bar\alpha_t}` (the denoiser's Jacobian is dropped). The paper does not say which.
            Defaults to 'noisy'.
        noise (str): How sampling starts from a feature z: 'schedule' noises it to the first timestep,
            :math:`\sqrt{\bar\alpha} z + \sqrt{1-\bar\alpha}\epsilon`; 'adapter' mixes :math:`\gamma z + (1-\gamma)\epsilon`
            with a :math:`\gamma` given to :meth:`forward`; 'none' starts from z itself. Defaults to 'schedule'.
        guidance_interval (int): G is evaluated in every so many-th step and kept for those between: a classifier of many
            classes costs several times what the denoiser does. Strong guidance overshoots without a look at where it has led.
            Defaults to 1: in each.

    Raises:
        ValueError: If ``guidance_point`` or ``noise`` is unknown, or the interval is not positive.
    """

    def __init__(
        self,
        steps: int = 5,
        start: float = 0.5,
        scale: float = 1.0,
        guidance_point: str = 'noisy',
        noise: str = 'schedule',
        guidance_interval: int = 1,
    ) -> None:
        super().__init__()
        if guidance_point not in ('noisy', 'clean'):
            raise ValueError(f"guidance_point must be 'noisy' or 'clean', but got {guidance_point!r}.")
        if noise not in ('schedule', 'adapter', 'none'):
            raise ValueError(f"noise must be 'schedule', 'adapter' or 'none', but got {noise!r}.")
        if guidance_interval < 1:
            raise ValueError(f'guidance_interval must be at least 1, but got {guidance_interval}.')
        self.steps = steps
        self.start = start
        self.scale = scale
        self.guidance_point = guidance_point
        self.noise = noise
        self.guidance_interval = guidance_interval

    def initial(self, schedule: DDIMSchedule, feature: Tensor, noise: Tensor, gamma: Tensor | None = None) -> Tensor:
        """Return the noised feature that sampling starts from; see the argument ``noise`` of the class.

        Args:
            schedule (DDIMSchedule): The noise schedule.
            feature (Tensor): Features of shape (B, C, ...).
            noise (Tensor): Standard normal noise of the same shape.
            gamma (Tensor, optional): Mixing weights, broadcastable to the features, for ``noise='adapter'``.

        Returns:
            Tensor: Of shape (B, C, H, W).
        """
        if self.noise == 'none':
            return feature
        if self.noise == 'schedule':
            return schedule.add_noise(feature, noise, schedule.timesteps(self.steps, self.start)[0])
        if gamma is None:
            raise ValueError("A sampler with noise='adapter' needs the gamma of a NoiseAdapter, but got None.")
        return gamma * feature + (1 - gamma) * noise

    def forward(
        self,
        denoiser: NoiseModel,
        schedule: DDIMSchedule,
        feature: Tensor,
        noise: Tensor,
        guidance: Guidance | None = None,
        gamma: Tensor | None = None,
        trajectory: list[Tensor] | None = None,
    ) -> Tensor:
        r"""Denoise features. Whether a graph is kept is the caller's choice (``torch.no_grad``).

        Args:
            denoiser (Callable): :math:`\epsilon_\theta`, called with (x_t, t).
            schedule (DDIMSchedule): The noise schedule.
            feature (Tensor): Features z of shape (B, C, ...).
            noise (Tensor): Standard normal noise of the same shape.
            guidance (Callable, optional): Gradient of the log-likelihood. Defaults to None: no guidance.
            gamma (Tensor, optional): Mixing weights of a noise adapter. Defaults to None.
            trajectory (list[Tensor], optional): Gets the predicted clean feature of every step appended, for pictures and
                health figures. Defaults to None.

        Returns:
            Tensor: The denoised features of shape (B, C, ...).
        """
        timesteps = schedule.timesteps(self.steps, self.start)
        x = self.initial(schedule, feature, noise, gamma)
        gradient: Tensor | None = None
        for i, (t, previous) in enumerate(zip(timesteps, [*timesteps[1:], None], strict=True)):
            predicted = denoiser(x, t).to(x.dtype)
            if guidance is not None and self.scale:
                if i % self.guidance_interval == 0:
                    gradient = guidance(self._judged(schedule, x, predicted, t))
                assert gradient is not None  # step 0 evaluates it
                predicted = torch.sub(predicted, gradient, alpha=self._strength(schedule, t))
            if trajectory is not None:
                trajectory.append(schedule.predict_clean(x, predicted, t))
            x = schedule.step(x, predicted, t, previous)
        return x

    def _judged(self, schedule: DDIMSchedule, x: Tensor, predicted: Tensor, t: int) -> Tensor:
        return schedule.predict_clean(x, predicted, t) if self.guidance_point == 'clean' else x

    def _strength(self, schedule: DDIMSchedule, t: int) -> float:
        signal, sigma = schedule.noise_level(t)
        return self.scale * sigma / (signal if self.guidance_point == 'clean' else 1)
