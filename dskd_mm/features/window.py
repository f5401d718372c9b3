"""A part of each level of a pyramid, where all of it would cost too much."""

from collections.abc import Sequence
from functools import cached_property
from itertools import accumulate

import torch
from torch import Tensor

from dskd_mm.features.pyramid import Pyramid


class Window:
    """A window of at most S x S locations on each level of a pyramid, at a place of its own in each image.

    What it takes is again the packed map of a pyramid, :attr:`pyramid`, of smaller levels: whatever works on maps works on
    windows, neighbourhoods included. Levels of at most 4 S^2 locations are taken whole: the rest of them costs little.

    Args:
        pyramid (Pyramid): The whole levels.
        size (int): S, in locations.
        centers (Sequence[Tensor]): For each level the location, in row-major order, that an image's window lies around, (B, ).
        generator (torch.Generator): Draws where in the window that location lies: anywhere, but for the borders of the map.
    """

    def __init__(self, pyramid: Pyramid, size: int, centers: Sequence[Tensor], generator: torch.Generator) -> None:
        self.whole = pyramid
        self.pyramid = self.shrink(pyramid, size)
        self.indices: list[Tensor] = []
        for (height, width), (rows, columns), center in zip(pyramid.sizes, self.pyramid.sizes, centers, strict=True):
            place = torch.rand(2, len(center), generator=generator, device=center.device)
            top = cornered(center // width, rows, height, place[0])
            left = cornered(center % width, columns, width, place[1])
            down = (top[:, None] + torch.arange(rows, device=center.device)) * width
            right = left[:, None] + torch.arange(columns, device=center.device)
            self.indices.append((down[:, :, None] + right[:, None]).flatten(1))

    @staticmethod
    def shrink(pyramid: Pyramid, size: int) -> Pyramid:
        """Return the levels that are left of a pyramid, see the class."""
        whole = 4 * size**2
        return Pyramid([(h, w) if h * w <= whole else (min(h, size), min(w, size)) for h, w in pyramid.sizes])

    def cut(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Cut the window out of maps.

        Args:
            maps (Sequence[Tensor]): (B, C, H, W) a level.

        Returns:
            list[Tensor]: (B, C, H', W') a level, itself where it is taken whole, else a copy.
        """
        return [
            level if level.shape[2:] == size else gather(level.flatten(2), index).unflatten(2, size)
            for level, index, size in zip(maps, self.indices, self.pyramid.sizes, strict=True)
        ]

    def take(self, packed: Tensor) -> Tensor:
        """Cut the window out of what is packed, (B, C, N), or of predictions (B, K, N * A) of which A follow each other there.

        Returns:
            Tensor: (B, C, N') or (B, K, N' * A), a copy.
        """
        index, each = self._packed_index, packed.shape[2] // sum(self.whole.lengths)
        if each > 1:
            index = (index[:, :, None] * each + torch.arange(each, device=index.device)).flatten(1)
        return gather(packed, index)

    @cached_property
    def _packed_index(self) -> Tensor:
        """:attr:`indices` counted over all levels, (B, N')."""
        starts = accumulate(self.whole.lengths[:-1], initial=0)
        return torch.cat([start + index for start, index in zip(starts, self.indices, strict=True)], dim=1)


def gather(packed: Tensor, index: Tensor) -> Tensor:
    """Take locations (B, N') out of (B, C, N)."""
    return packed.gather(2, index[:, None].expand(-1, packed.shape[1], -1))


def cornered(center: Tensor, size: int, whole: int, place: Tensor) -> Tensor:
    """Return the first row or column of a window of ``size`` that holds ``center``, a share ``place`` of it before."""
    first = center - (place * size).long().clamp(max=size - 1)
    return first.clamp(min=0, max=whole - size)
