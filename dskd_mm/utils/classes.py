"""Names of classes: what a teacher's checkpoint calls them, and where the student's stand among them."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any


def checkpoint_classes(checkpoint: Mapping[str, Any]) -> list[str] | None:
    """Return the names of the classes that a checkpoint was trained on, None if it does not tell.

    Args:
        checkpoint (Mapping): What :func:`~dskd_mm.utils.checkpoint.load_checkpoint_file` returned.
    """
    meta = checkpoint.get('meta') or {}
    known = (meta.get('dataset_meta') or {}).get('classes', meta.get('CLASSES'))  # the latter before mmengine
    return list(known) if isinstance(known, (list, tuple)) else None


def training_classes() -> list[str] | None:
    """Return the names of the classes of the data that the present run trains on, None if there are none."""
    from mmengine.visualization import Visualizer

    try:
        # Every runner tells its visualizer what its data sets tell of themselves.
        meta = Visualizer.get_current_instance().dataset_meta or {}
    except RuntimeError:  # there is no run
        return None
    names = meta.get('classes')
    return list(names) if isinstance(names, (list, tuple)) else None


def first_difference(known: Sequence[str], names: Sequence[str]) -> str | None:
    """Return in words where a teacher's classes differ first from those of the data; None if they do not."""
    for i, (theirs, ours) in enumerate(itertools.zip_longest(known, names)):
        if theirs != ours:
            return f'class {i} is {theirs!r} to the teacher and {ours!r} in the data'
    return None


def class_indices(known: Sequence[str], names: Sequence[str], outputs: int) -> tuple[int, ...]:
    """Return where the classes of the data stand among a teacher's outputs, a background behind them included.

    Args:
        known (Sequence[str]): The teacher's classes.
        names (Sequence[str]): Those of the data: all of them, in any order, or some.
        outputs (int): Outputs of the teacher's classifier.

    Raises:
        ValueError: If the teacher does not know a class, or does not have an output for each of its own.
    """
    missing = [name for name in names if name not in known]
    if missing:
        raise ValueError(
            f'match_classes of a teacher expects one that knows every class of the data, but {missing[0]!r} is none of its '
            f'{len(known)} classes ({", ".join(map(repr, known[:5]))}, ...); {len(missing)} of {len(names)} are not there. '
            'Give the data the names that the teacher has, by metainfo=dict(classes=...), or leave match_classes out.'
        )
    if outputs - len(known) not in (0, 1):
        raise ValueError(
            f'match_classes of a teacher expects an output for each class, and perhaps one for the background, but its '
            f'checkpoint names {len(known)} classes and its classifier has {outputs} outputs: leave match_classes out.'
        )
    background = range(len(known), outputs)
    return (*(list(known).index(name) for name in names), *background)
