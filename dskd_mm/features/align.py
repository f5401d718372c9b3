"""Aligning a student's features with a teacher's: channels and space."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dskd_mm.distributed import channel_moments
from dskd_mm.features.norm import build_norm
from dskd_mm.registry import MODELS


@MODELS.register_module()
class ChannelAlign(nn.Module):
    r""":math:`\phi`: maps the student's channels to the teacher's.

    Args:
        in_channels (int): Channels of the student.
        out_channels (int): Channels of the teacher.
        kind (str): 'conv' for a 1x1 convolution and a norm, 'mlp' for two of them with a ReLU between, 'identity' for
            nothing, which needs equal channels. Defaults to 'conv'.
        norm (str, optional): 'BN', 'SyncBN', 'GN' or None. Defaults to 'BN'.

    Raises:
        ValueError: If the kind is unknown, or is 'identity' with unequal channels.
    """

    def __init__(self, in_channels: int, out_channels: int, kind: str = 'conv', norm: str | None = 'BN') -> None:
        super().__init__()

        def layer(fan_in: int) -> list[nn.Module]:
            return [nn.Conv2d(fan_in, out_channels, 1, bias=norm is None), build_norm(norm, out_channels)]

        if kind == 'conv':
            self.layers = nn.Sequential(*layer(in_channels))
        elif kind == 'mlp':
            self.layers = nn.Sequential(*layer(in_channels), nn.ReLU(inplace=True), *layer(out_channels))
        elif kind == 'identity':
            if in_channels != out_channels:
                raise ValueError(
                    f"kind='identity' needs equal channels, but the student has {in_channels} and the teacher "
                    f"{out_channels}: use kind='conv' or 'mlp'."
                )
            self.layers = nn.Sequential()
        else:
            raise ValueError(f"kind of ChannelAlign must be 'conv', 'mlp' or 'identity', but got {kind!r}.")

    def forward(self, feature: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H, W)."""
        return self.layers(feature)


def match_moments(feature: Tensor, like: Tensor, joined: bool = False) -> Tensor:
    """Bring each channel of features to the mean and the deviation that it has in others.

    Args:
        feature (Tensor): (B, C, N).
        like (Tensor): The others, of that shape.
        joined (bool): Whether moments are those of all processes' batches, which then have to ask. Defaults to False.
    """
    mean, variance = channel_moments(torch.cat([feature, like], dim=1), joined)
    (own, center), (spread, deviation) = mean.chunk(2, dim=1), variance.chunk(2, dim=1)
    # Roots apart: that of a quotient has no gradient where others do not vary at all.
    return (feature - own) * deviation.sqrt() * (spread + 1e-8).rsqrt() + center


def match_space(feature: Tensor, size: torch.Size | tuple[int, int]) -> Tensor:
    """Resize a map to a height and width: averaged where it shrinks, bilinear where it grows.

    Args:
        feature (Tensor): Of shape (B, C, H, W).
        size (tuple[int, int]): Wanted height and width.

    Returns:
        Tensor: Of shape (B, C, height, width).
    """
    height, width = size
    if feature.shape[2:] == (height, width):
        return feature
    if height <= feature.shape[2] and width <= feature.shape[3]:
        return F.adaptive_avg_pool2d(feature, (height, width))
    return F.interpolate(feature, size=(height, width), mode='bilinear', align_corners=False)


def match_levels(maps: Sequence[Tensor], like: Sequence[Tensor], by_size: bool = True) -> list[Tensor]:
    """Resize a teacher's maps, in float32, to the heights and widths of the student's, level by level.

    A teacher that sees larger images has what the student finds at a level at a later one, where an object is as many
    locations large. So each level of the student gets the one nearest in size of those of the same width.

    Args:
        maps (Sequence[Tensor]): (B, C, H, W) a level; vectors (B, C) stay as they are.
        like (Sequence[Tensor]): The student's, as many.
        by_size (bool): Whether levels correspond by their size; otherwise by their order. Defaults to True.

    Raises:
        ValueError: If they have not as many levels.
    """
    if len(maps) != len(like):
        raise ValueError(
            f'The teacher has {len(maps)} levels, the student {len(like)}: they must have the same number. Choose a pair of '
            'the same number of levels, or other taps in the site.'
        )
    if by_size and all(level.ndim == 4 for level in maps):
        maps = [maps[nearest_level(maps, i, level.shape[2:])] for i, level in enumerate(like)]
    return [
        level.float() if level.ndim == 2 else match_space(level.float(), other.shape[2:])
        for level, other in zip(maps, like, strict=True)
    ]


def nearest_level(maps: Sequence[Tensor], index: int, size: Sequence[int]) -> int:
    """Return which of the levels as wide as one is nearest in size; of equally near ones that nearest in order.

    Args:
        maps (Sequence[Tensor]): (B, C, H, W) a level.
        index (int): The one.
        size (Sequence[int]): Height and width.
    """

    def distance(i: int) -> tuple[float, int]:
        return abs(math.log(max(math.prod(maps[i].shape[2:]), 1) / max(math.prod(size), 1))), abs(i - index)

    return min((i for i, level in enumerate(maps) if level.shape[1] == maps[index].shape[1]), key=distance)
