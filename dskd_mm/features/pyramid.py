"""Maps of several resolutions as one tensor."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

MapFunction = Callable[[Tensor], Tensor]


class Pyramid:
    """The sizes of the levels of a feature pyramid, to pack their maps into one tensor (B, C, N) and to take them out again.

    N counts the locations of all levels. Whatever treats each location alike (noise, schedules, 1x1 convolutions, losses) then
    sees one tensor, whatever the task; what has a neighbourhood (the denoiser, k x k classifiers) runs level by level in
    :meth:`map`. A single map is a pyramid of one level, a vector one of one location.

    Args:
        sizes (Sequence[tuple[int, int]]): Height and width of each level.
    """

    def __init__(self, sizes: Sequence[tuple[int, int]]) -> None:
        self.sizes = [(int(height), int(width)) for height, width in sizes]
        self.lengths = [height * width for height, width in self.sizes]

    @classmethod
    def of(cls, maps: Sequence[Tensor]) -> 'Pyramid':
        """Return the pyramid of maps (B, C, H, W)."""
        return cls([(level.shape[2], level.shape[3]) for level in maps])

    @staticmethod
    def pack(maps: Sequence[Tensor]) -> Tensor:
        """Pack tensors (B, C, ...), one a level, into (B, C, N). What has no locations, (B, K) of one level, stays as it is."""
        if len(maps) == 1 and maps[0].ndim == 2:
            return maps[0]
        flat = [level.flatten(2) for level in maps]
        return flat[0] if len(flat) == 1 else torch.cat(flat, dim=2)

    def unpack(self, packed: Tensor) -> list[Tensor]:
        """Return the maps (B, C, H, W) of a packed tensor (B, C, N)."""
        if len(self.sizes) == 1:
            return [packed.unflatten(2, self.sizes[0])]
        levels = packed.split(self.lengths, dim=2)
        return [level.unflatten(2, size) for level, size in zip(levels, self.sizes, strict=True)]

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
