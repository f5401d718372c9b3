"""The light noise network of DSKD and DiffKD."""

from torch import Tensor, nn

from dskd_mm.diffusion.schedule import DDIMSchedule, NoiseModel
from dskd_mm.features.norm import build_norm
from dskd_mm.functional import mean_squared_error
from dskd_mm.registry import MODELS

TABLE_ROWS = 1280
"""Rows of a timestep table where none are given: those of DiffKD."""


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


@MODELS.register_module()
class DiffusionDenoiser(nn.Module):
    r"""Predicts the noise in a feature: :math:`\epsilon_\theta(x_t, t)`.

    The network of DiffKD (Huang et al. 2023): the timestep enters as one learned vector per step that is added to the
    feature. With ``kernel_size=3`` (maps): two bottlenecks, a 1x1 convolution and a norm, 0.205 M parameters at C=256
    without the embedding. With ``kernel_size=1`` (vectors, as (B, C, 1, 1)): two 1x1 multilayer perceptrons of inner width
    4C. It exists in training only; the exported student holds nothing of it.

    Args:
        channels (int): Width C of the features.
        kernel_size (int): 3 for maps, 1 for vectors. Defaults to 3.
        norm (str): 'BN', 'SyncBN' or 'GN'; GN where few images share a device. Defaults to 'BN'.
        num_embeddings (int): Rows of the timestep table, an upper bound of the schedule's length. Defaults to 1280.

    Raises:
        ValueError: If ``kernel_size`` is neither 1 nor 3.
    """

    def __init__(self, channels: int, kernel_size: int = 3, norm: str = 'BN', num_embeddings: int = TABLE_ROWS) -> None:
        super().__init__()
        self.channels = channels
        self.time_embedding = nn.Embedding(num_embeddings, channels)
        if kernel_size == 3:
            self.layers = nn.Sequential(
                Bottleneck(channels, norm=norm),
                Bottleneck(channels, norm=norm),
                nn.Conv2d(channels, channels, 1, bias=False),
                build_norm(norm, channels),
            )
        elif kernel_size == 1:
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
        else:
            raise ValueError(f'kernel_size of DiffusionDenoiser must be 1 (vectors) or 3 (maps), but got {kernel_size}.')

    def forward(self, noisy: Tensor, timestep: int | Tensor) -> Tensor:
        """Predict the noise.

        Args:
            noisy (Tensor): Noised features of shape (B, C, H, W).
            timestep (int | Tensor): One timestep, or one per sample of shape (B, ).

        Returns:
            Tensor: Predicted noise of shape (B, C, H, W).
        """
        if isinstance(timestep, Tensor):
            embedding = self.time_embedding(timestep)
        else:
            # Row indexing instead of a look-up: no index tensor has to be made on the device in every sampling step.
            embedding = self.time_embedding.weight[timestep][None]
        return self.layers(noisy + embedding[:, :, None, None].to(noisy.dtype))


def table_rows(schedule: DDIMSchedule, given: int | None = None) -> int:
    """How many timesteps a denoiser embeds for a schedule.

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
    r""":math:`L_{diff} = E\|\epsilon - \epsilon_\theta(x_t, t)\|^2` (DDPM eq. 14), averaged over all elements.

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
