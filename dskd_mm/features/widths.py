"""Levels of different widths: a module for each width that occurs."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from dskd_mm.features.pyramid import Pyramid, per_location

Channels = int | tuple[int, ...]
"""Channels of all levels of a pyramid, or of each."""


class PerWidth(nn.ModuleList):
    """Modules for levels of different widths, one for all levels of the same width.

    Args:
        modules (Sequence[nn.Module]): One for each width that occurs.
        index (Sequence[int]): Which of them each level has.
    """

    def __init__(self, modules: Sequence[nn.Module], index: Sequence[int]) -> None:
        super().__init__(modules)
        self.index = tuple(index)


def per_width(make: Callable[..., nn.Module], **channels: Channels) -> nn.Module:
    """Make a module for all levels, or a :class:`PerWidth` where one of the given channels differs between levels.

    Args:
        make (Callable): Makes a module, given one number of channels for each keyword.
        channels (int | tuple[int, ...]): Channels by keyword, such as ``in_channels`` and ``out_channels``.

    Raises:
        ValueError: If they are of different numbers of levels.
    """
    counts = {len(each) for each in channels.values() if isinstance(each, tuple)}
    if not counts:
        return make(**channels)
    if len(counts) > 1:
        raise ValueError(f'Student and teacher are expected to have as many levels, but got the channels {channels}.')
    (count,) = counts
    rows = list(zip(*(each_level(width, count) for width in channels.values()), strict=True))
    distinct = list(dict.fromkeys(rows))
    modules = [make(**dict(zip(channels, row, strict=True))) for row in distinct]
    return PerWidth(modules, [distinct.index(row) for row in rows])


def each_level(channels: Channels, count: int) -> tuple[int, ...]:
    """Return the channels of each of so many levels."""
    return channels if isinstance(channels, tuple) else (channels,) * count


def modules_of(module: nn.Module) -> list[nn.Module]:
    """Return the modules of a :class:`PerWidth`, or the only one."""
    return list(module) if isinstance(module, PerWidth) else [module]


def level_modules(module: nn.Module, count: int) -> list[nn.Module]:
    """Return the module of each of so many levels."""
    return [module[i] for i in module.index] if isinstance(module, PerWidth) else [module] * count


def align_levels(module: nn.Module, maps: Sequence[Tensor]) -> tuple[Pyramid, Tensor]:
    """Map levels by 1x1 convolutions and norms, which see all levels of a width together.

    Args:
        module (nn.Module): The convolutions, as :func:`per_width` makes them.
        maps (Sequence[Tensor]): (B, C, H, W) a level.

    Returns:
        tuple[Pyramid, Tensor]: The levels of what comes out, and these packed.
    """
    if not isinstance(module, PerWidth):
        return Pyramid.of(maps), per_location(module, Pyramid.pack(maps))
    found = list(maps)
    for number, own in enumerate(module):
        levels = [level for level, i in enumerate(module.index) if i == number]
        pyramid, packed = align_levels(own, [maps[level] for level in levels])
        for level, aligned in zip(levels, pyramid.unpack(packed), strict=True):
            found[level] = aligned
    return Pyramid.of(found), Pyramid.pack(found)
