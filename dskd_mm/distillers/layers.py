"""Further layers of both models that losses may read, as the argument ``layers`` names them."""

from collections.abc import Mapping

from torch import nn

from dskd_mm.arguments import check_arguments
from dskd_mm.features import fill_channels
from dskd_mm.structures import Layer
from dskd_mm.teacher import FrozenTeacher


def split_layers(
    layers: dict[str, dict], student: nn.Module, teacher: FrozenTeacher
) -> tuple[dict[str, Layer], dict[str, Layer]]:
    """Return the student's and the teacher's side of the argument ``layers``, with channels where they are not given.

    Raises:
        ValueError: If an entry is no pair of 'student' and 'teacher', each with a path, or has a name that has a meaning
            already, or channels cannot be found.
    """
    for name, pair in layers.items():
        if name in ('feature', 'logits'):
            raise ValueError(f"The name {name!r} of layers has a meaning already: the site's own. Choose another one.")
        if not isinstance(pair, Mapping) or set(pair) != {'student', 'teacher'}:
            raise ValueError(
                f'layers.{name} expects dict(student=dict(path=...), teacher=dict(path=...)), but '
                f'got {f"the keys {sorted(pair)}" if isinstance(pair, Mapping) else repr(pair)}.'
            )
        for owner, side in pair.items():
            if not isinstance(side, Mapping) or 'path' not in side:
                raise ValueError(f'layers.{name}.{owner} expects dict(path=...), but got {side!r}.')
            check_arguments(Layer, side, f'layers.{name}.{owner}')
    own = fill_channels({name: pair['student'] for name, pair in layers.items()}, lambda: student, 'student')
    theirs = fill_channels({name: pair['teacher'] for name, pair in layers.items()}, teacher.build_model, 'teacher')
    return {name: Layer(**layer) for name, layer in own.items()}, {name: Layer(**layer) for name, layer in theirs.items()}
