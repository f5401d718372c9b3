"""The light noise networks of DSKD and DiffKD."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from dskd_mm.diffusion.schedule import DDIMSchedule, NoiseModel
from dskd_mm.features.norm import build_norm
from dskd_mm.functional import mean_squared_error
from dskd_mm.registry import MODELS

TABLE_ROWS = 1280
"""Rows of a timestep table where none are given: those of DiffKD."""
TIME_CHANNELS = 64
"""Sines and cosines that describe a timestep to scale and shift."""


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 residual block without a final activation (DiffKD, appendix).

    Args:
        channels (int): Width C of input and output.
        reduction (int): The inner width is C // reduction, at least 2: of one channel at one location a norm leaves nothing.
            Defaults to 4.
        norm (str): See :func:`dskd_mm.features.norm.build_norm`. Defaults to 'BN'.
    """

    def __init__(self, channels: int, reduction: int = 4, norm: str = 'BN') -> None:
        super().__init__()
        mid = max(channels // reduction, 2)
        self.layers = nn.Sequential(
            nn.Conv2d(channels, mid, 1, bias=False),
            build_norm(norm, mid),
            nn.ReLU(inplace=True),
            nn.Conv2d(mid, mid, 3, padding=1, bias=False),
            build_norm(norm, mid),
            nn.ReLU(inplace=True),
            nn.Conv2d(mid, channels, 1, bias=False),
            build_norm(norm, channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        return x + self.layers(x)


class TimedNorm(nn.Module):
    """A norm, then scale and shift by the timestep (FiLM, Perez et al. 2018); it begins as the norm alone.

    Args:
        channels (int): Width C.
        norm (str): See :func:`dskd_mm.features.norm.build_norm`.
    """

    def __init__(self, channels: int, norm: str) -> None:
        super().__init__()
        self.norm = build_norm(norm, channels)
        self.scale_shift = nn.Linear(TIME_CHANNELS, 2 * channels)
        nn.init.zeros_(self.scale_shift.weight)
        nn.init.zeros_(self.scale_shift.bias)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Normalise maps (B, C, H, W) under descriptions of their timesteps, (B, 64) or (1, 64)."""
        scale, shift = self.scale_shift(time)[:, :, None, None].chunk(2, dim=1)
        return self.norm(x) * (1 + scale) + shift


class TimedBlock(nn.Module):
    """A residual block of convolutions, each with a :class:`TimedNorm`, without a final activation.

    Args:
        widths (Sequence[int]): Channels before, between and after the convolutions; the last are the first.
        kernel_sizes (Sequence[int]): Side of each convolution.
        norm (str): See :func:`dskd_mm.features.norm.build_norm`.
    """

    def __init__(self, widths: Sequence[int], kernel_sizes: Sequence[int], norm: str) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            nn.Conv2d(before, after, side, padding=side // 2, bias=False)
            for before, after, side in zip(widths, widths[1:], kernel_sizes, strict=False)
        )
        self.norms = nn.ModuleList(TimedNorm(width, norm) for width in widths[1:])

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape; see :class:`TimedNorm`."""
        y = x
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            y = norm(conv(y.relu() if i else y), time)
        return x + y


@MODELS.register_module()
class DiffusionDenoiser(nn.Module):
    r"""Predicts the noise in a feature: :math:`\epsilon_\theta(x_t, t)`. It exists in training only.

    Two ways to tell the timestep:

    - 'table', the network of DiffKD (Huang et al. 2023): one learned vector per step is added to the feature. With
      ``kernel_size=3`` (maps): two bottlenecks, a 1x1 convolution and a norm, 0.207 M parameters at C=256 without the
      embedding. With ``kernel_size=1`` (vectors, as (B, C, 1, 1)): two 1x1 multilayer perceptrons of inner width 4C.
    - 'film': the same bottlenecks or perceptrons, with a scale and a shift by the timestep after each norm, and a last 1x1
      convolution that begins at zero. They predict the velocity v of Salimans & Ho (2022), and the noise is
      :math:`\sqrt{1-\bar\alpha_t}\,x_t + \sqrt{\bar\alpha_t}\,v`: an untrained network is the filter that takes the feature
      itself for noise, and no norm at the end fixes the size of what is predicted.

    The rows of a table begin as large as the feature, and behind a batch norm all samples of a sampling step lose their common
    row again: such a denoiser has to be trained through the sampler, as DiffKD does it.

    Args:
        channels (int): Width C of the features.
        kernel_size (int): 3 for maps, 1 for vectors. Defaults to 3.
        norm (str): 'BN', 'SyncBN' or 'GN'; GN where few images share a device, and with 'film', for it samples as it was
            trained. Defaults to 'BN'.
        num_embeddings (int): Rows of the timestep table, an upper bound of the schedule's length. Defaults to 1280.
        time (str): 'table' or 'film'. Defaults to 'table'.
        schedule (DDIMSchedule, optional): The noise schedule, for 'film'. Defaults to None: one of 1000 steps.

    Raises:
        ValueError: If ``kernel_size`` is neither 1 nor 3, or ``time`` is unknown.
    """

    sinusoids: Tensor

    def __init__(
        self,
        channels: int,
        kernel_size: int = 3,
        norm: str = 'BN',
        num_embeddings: int = TABLE_ROWS,
        time: str = 'table',
        schedule: DDIMSchedule | None = None,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.time = time
        if kernel_size not in (1, 3):
            raise ValueError(f'kernel_size of DiffusionDenoiser must be 1 (vectors) or 3 (maps), but got {kernel_size}.')
        if time == 'table':
            self._build_table(channels, kernel_size, norm, num_embeddings)
        elif time == 'film':
            self._build_film(channels, kernel_size, norm, schedule or DDIMSchedule())
        else:
            raise ValueError(f"time of DiffusionDenoiser must be 'table' or 'film', but got {time!r}.")

    def _build_film(self, channels: int, kernel_size: int, norm: str, schedule: DDIMSchedule) -> None:
        self.schedule = schedule
        self.register_buffer('sinusoids', sinusoids(schedule.num_train_steps), persistent=False)
        self.describe = nn.Sequential(nn.Linear(TIME_CHANNELS, TIME_CHANNELS), nn.SiLU())
        inner, kernel_sizes = ([max(channels // 4, 2)] * 2, (1, 3, 1)) if kernel_size == 3 else ([4 * channels], (1, 1))
        self.blocks = nn.ModuleList(TimedBlock([channels, *inner, channels], kernel_sizes, norm) for _ in range(2))
        self.output = nn.Conv2d(channels, channels, 1)
        for parameter in self.output.parameters():
            nn.init.zeros_(parameter)

    def _build_table(self, channels: int, kernel_size: int, norm: str, num_embeddings: int) -> None:
        self.time_embedding = nn.Embedding(num_embeddings, channels)
        if kernel_size == 3:
            self.layers = nn.Sequential(
                Bottleneck(channels, norm=norm),
                Bottleneck(channels, norm=norm),
                nn.Conv2d(channels, channels, 1, bias=False),
                build_norm(norm, channels),
            )
        else:
            hidden = 4 * channels
            self.layers = nn.Sequential(
                nn.Conv2d(channels, hidden, 1, bias=False),
                build_norm(norm, hidden),
                nn.ReLU(inplace=True),
                nn.Conv2d(hidden, channels, 1, bias=False),
                build_norm(norm, channels),
                nn.Conv2d(channels, hidden, 1, bias=False),
                build_norm(norm, hidden),
                nn.ReLU(inplace=True),
                nn.Conv2d(hidden, channels, 1, bias=False),
            )

    def forward(self, noisy: Tensor, timestep: int | Tensor) -> Tensor:
        """Predict the noise.

        Args:
            noisy (Tensor): Noised features of shape (B, C, H, W).
            timestep (int | Tensor): One timestep, or one per sample of shape (B, ).

        Returns:
            Tensor: Predicted noise of shape (B, C, H, W).
        """
        output = self.network(noisy, timestep)
        return output if self.time == 'table' else self.schedule.noise_of_velocity(noisy, output, timestep)

    def network(self, noisy: Tensor, timestep: int | Tensor) -> Tensor:
        """Return what the network itself says: the noise with a table, else the velocity; see :meth:`forward`."""
        table = self.sinusoids if self.time == 'film' else self.time_embedding.weight
        # Row indexing instead of a look-up: no index tensor has to be made on the device in every sampling step.
        row = table[timestep] if isinstance(timestep, Tensor) else table[timestep][None]
        if self.time == 'table':
            return self.layers(noisy + row[:, :, None, None].to(noisy.dtype))
        time, velocity = self.describe(row), noisy
        for block in self.blocks:
            velocity = block(velocity, time)
        return self.output(velocity)


def sinusoids(count: int) -> Tensor:
    """Return sines and cosines of the timesteps 0 ... count - 1 at frequencies from 1 to 1e-4, (count, 64)."""
    half = TIME_CHANNELS // 2
    angles = torch.arange(count)[:, None] * torch.exp(torch.arange(half) * (-math.log(10000) / (half - 1)))
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def table_rows(schedule: DDIMSchedule, given: int | None = None) -> int:
    """Return how many timesteps a denoiser embeds for a schedule.

    Args:
        schedule (DDIMSchedule): The noise schedule.
        given (int, optional): The ``num_embeddings`` that a config asks for. Defaults to None: 1280, or the schedule's length
            if that is more.

    Raises:
        ValueError: If fewer are given than the schedule has.
    """
    length = schedule.num_train_steps
    if given is None:
        return max(TABLE_ROWS, length)
    if given < length:
        raise ValueError(
            f'The denoiser embeds {given} timesteps, but the schedule has {length}: leave num_embeddings of the denoiser out, '
            f'or set it to {length}, or take a smaller num_train_steps of the schedule.'
        )
    return given


def noise_prediction_loss(
    denoiser: NoiseModel, schedule: DDIMSchedule, clean: Tensor, noise: Tensor, timestep: Tensor
) -> Tensor:
    r"""Return :math:`L_{diff} = E\|\epsilon - \epsilon_\theta(x_t, t)\|^2` (DDPM eq. 14), averaged over all elements.

    Args:
        denoiser (Callable): :math:`\epsilon_\theta`, called with (x_t, t).
        schedule (DDIMSchedule): The noise schedule.
        clean (Tensor): Clean features of shape (B, C, ...).
        noise (Tensor): Standard normal noise of the same shape.
        timestep (Tensor): Integer timesteps of shape (B, ).

    Returns:
        Tensor: A scalar.
    """
    predicted = denoiser(schedule.add_noise(clean, noise, timestep), timestep)
    return mean_squared_error(predicted, noise)
