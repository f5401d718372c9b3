"""How much noise a student's feature already holds."""

from torch import Tensor, nn

from dskd_mm.diffusion.denoiser import Bottleneck
from dskd_mm.features.norm import build_norm
from dskd_mm.registry import MODELS


@MODELS.register_module()
class NoiseAdapter(nn.Module):
    r"""Predicts :math:`\gamma` of the start :math:`\gamma z + (1-\gamma)\epsilon` (DiffKD, section 3.4).

    A student's feature is a noisy feature of unknown level; the adapter estimates per image how much noise to add so that
    it fits the first sampling step.

    Args:
        channels (int): Width C of the features.
        kernel_size (int): 3 for maps (bottleneck C/8), 1 for vectors. Defaults to 3.
        norm (str): 'BN', 'SyncBN' or 'GN'. Defaults to 'BN'.

    Raises:
        ValueError: If ``kernel_size`` is neither 1 nor 3.
    """

    def __init__(self, channels: int, kernel_size: int = 3, norm: str = 'BN') -> None:
        super().__init__()
        if kernel_size == 3:
            self.features: nn.Module = Bottleneck(channels, reduction=8, norm=norm)
        elif kernel_size == 1:
            self.features = nn.Sequential(
                nn.Conv2d(channels, 2 * channels, 1, bias=False),
                build_norm(norm, 2 * channels),
                nn.ReLU(inplace=True),
                nn.Conv2d(2 * channels, channels, 1, bias=False),
                build_norm(norm, channels),
            )
        else:
            raise ValueError(f'kernel_size of NoiseAdapter must be 1 (vectors) or 3 (maps), but got {kernel_size}.')
        self.fc = nn.Linear(channels, 2)

    def forward(self, feature: Tensor) -> Tensor:
        r"""Predict :math:`\gamma` for features of shape (B, C, H, W).

        Returns:
            Tensor: :math:`\gamma` in (0, 1) of shape (B, 1, 1, 1), float32.
        """
        pooled = self.features(feature).mean(dim=(2, 3))
        gamma = self.fc(pooled).float().softmax(dim=1)[:, 0]
        return gamma[:, None, None, None]
