"""A linear autoencoder that makes wide features cheap to diffuse."""

from torch import Tensor, nn

from dskd_mm.features.norm import build_norm
from dskd_mm.functional import mean_squared_error
from dskd_mm.registry import MODELS


@MODELS.register_module()
class FeatureAutoEncoder(nn.Module):
    """1x1 convolutions C -> latent -> C, trained on the reconstruction error (DiffKD, section 3.3).

    Args:
        channels (int): Width C of the features.
        latent_channels (int): Width of the latent.
        norm (str): Norm after the encoder: 'BN', 'SyncBN', 'GN'. Defaults to 'BN'.
    """

    def __init__(self, channels: int, latent_channels: int, norm: str = 'BN') -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv2d(channels, latent_channels, 1), build_norm(norm, latent_channels))
        self.decoder = nn.Conv2d(latent_channels, channels, 1)

    def encode(self, feature: Tensor) -> Tensor:
        """Map (B, C, H, W) to the latent (B, latent_channels, H, W)."""
        return self.encoder(feature)

    def decode(self, latent: Tensor) -> Tensor:
        """Map (B, latent_channels, H, W) back to (B, C, H, W)."""
        return self.decoder(latent)

    def forward(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """Encode and judge the reconstruction.

        Args:
            feature (Tensor): Features of shape (B, C, H, W).

        Returns:
            tuple[Tensor, Tensor]: The latent, detached from the graph so that only the reconstruction trains the
            autoencoder, and the mean squared reconstruction error, a scalar.
        """
        latent = self.encode(feature)
        loss = mean_squared_error(self.decode(latent), feature)
        return latent.detach(), loss
