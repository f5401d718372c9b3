"""Maps of several resolutions as one tensor."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

MapFunction = Callable[[Tensor], Tensor]


class Pyramid:
    """The sizes of the levels of a feature pyramid, to pack their maps into one tensor (B, C, N) and to take them out again.

    N counts the locations of all levels. Whatever treats each location alike (noise, schedules, 1x1 convolutions, losses) then
    sees one tensor, whatever the task; what has a neighbourhood (the denoiser, k x k classifiers) runs level by level in
    :meth:`map`. A single map is a pyramid of one level, a vector one of one location.

    Levels of different widths are packed number after number, (B, 1, M): what treats each number alike needs not know.

    Args:
        sizes (Sequence[tuple[int, int]]): Height and width of each level.
        channels (Sequence[int], optional): Channels of each level. Defaults to None: all have as many.
    """

    def __init__(self, sizes: Sequence[tuple[int, int]], channels: Sequence[int] | None = None) -> None:
        self.sizes = [(int(height), int(width)) for height, width in sizes]
        self.lengths = [height * width for height, width in self.sizes]
        self.channels = None if len(set(channels or ())) <= 1 else list(channels or ())

    @classmethod
    def of(cls, maps: Sequence[Tensor]) -> 'Pyramid':
        """Return the pyramid of maps (B, C, H, W)."""
        return cls([(level.shape[2], level.shape[3]) for level in maps], [level.shape[1] for level in maps])

    @staticmethod
    def pack(maps: Sequence[Tensor]) -> Tensor:
        """Pack tensors (B, C, ...), one a level, into (B, C, N). What has no locations, (B, K) of one level, stays as it is."""
        if len(maps) == 1 and maps[0].ndim == 2:
            return maps[0]
        if len({level.shape[1] for level in maps}) > 1:
            return torch.cat([level.flatten(1) for level in maps], dim=1)[:, None]
        flat = [level.flatten(2) for level in maps]
        return flat[0] if len(flat) == 1 else torch.cat(flat, dim=2)

    def unpack(self, packed: Tensor) -> list[Tensor]:
        """Return the maps (B, C, H, W) of a packed tensor (B, C, N)."""
        if len(self.sizes) == 1:
            return [packed.unflatten(2, self.sizes[0])]
        if self.channels is not None:
            shapes = [(width, *size) for width, size in zip(self.channels, self.sizes, strict=True)]
            pieces = packed[:, 0].split([math.prod(shape) for shape in shapes], dim=1)
            return [piece.unflatten(1, shape) for piece, shape in zip(pieces, shapes, strict=True)]
        levels = packed.split(self.lengths, dim=2)
        return [level.unflatten(2, size) for level, size in zip(levels, self.sizes, strict=True)]

    def by_width(self, *packed: Tensor) -> list[tuple['Pyramid', list[Tensor]]]:
        """Return, for each width that occurs, its levels and what is packed of them, (B, C, N)."""
        if self.channels is None:
            return [(self, list(packed))]
        maps = [self.unpack(tensor) for tensor in packed]
        return [
            (Pyramid([self.sizes[i] for i in own]), [self.pack([levels[i] for i in own]) for levels in maps])
            for own in self._widths
        ]

    def over_widths(self, function: Callable[..., Tensor], *packed: Tensor) -> Tensor:
        """Apply a function of packed levels of one width, (B, C, N), to those of each width, and pack what comes out."""
        if self.channels is None:
            return function(*packed)
        found: dict[int, Tensor] = {}
        for own, (part, tensors) in zip(self._widths, self.by_width(*packed), strict=True):
            found |= zip(own, part.unpack(function(*tensors)), strict=True)
        return self.pack([found[i] for i in range(len(found))])

    @property
    def _widths(self) -> list[list[int]]:
        """The levels of each width that occurs."""
        channels = self.channels or [0] * len(self.sizes)
        return [[i for i, other in enumerate(channels) if other == width] for width in dict.fromkeys(channels)]

    def map(self, functions: MapFunction | Sequence[MapFunction], packed: Tensor) -> Tensor:
        """Apply a function to every level, and pack what comes out.

        Args:
            functions (Callable | Sequence[Callable]): One for all levels, or a sequence of one, or of one per level.
            packed (Tensor): (B, C, N).

        Returns:
            Tensor: Of shape (B, C', N'), or (B, K) if the function reduces the only level to that.
        """
        maps = self.unpack(packed)
        each = [functions] if callable(functions) else list(functions)
        if len(each) == 1:
            each = each * len(maps)
        return self.pack([function(level) for function, level in zip(each, maps, strict=True)])


def per_location(module: MapFunction, packed: Tensor) -> Tensor:
    """Apply a module of 1x1 convolutions and norms to a packed pyramid (B, C, N): its norms then see all levels together."""
    return module(packed[..., None])[..., 0]


def fold_priors(logits: Tensor, num_priors: int) -> Tensor:
    """Split the channels of a dense head, (B, A*K, H, W), into classes and anchors: (B, K, H, W, A); as is for one anchor.

    The order of the locations is that of mmdet's losses, which flatten (B, H, W, A*K).
    """
    return logits if num_priors == 1 else logits.unflatten(1, (num_priors, -1)).permute(0, 2, 3, 4, 1)


def unfold_priors(logits: Tensor, num_priors: int) -> Tensor:
    """Undo :func:`fold_priors`."""
    return logits if num_priors == 1 else logits.permute(0, 4, 1, 2, 3).flatten(1, 2)
