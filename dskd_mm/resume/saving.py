"""Checkpoints that are whole or absent: how they are written, and which one to go on from."""

import os
import os.path as osp
import re
import zipfile
from collections.abc import Iterable
from pathlib import Path

from mmengine.fileio import LocalBackend, register_backend
from mmengine.logging import print_log

from dskd_mm.utils.atomic import write_atomically

ATOMIC = 'dskd_mm.atomic'


@register_backend(ATOMIC)
class AtomicBackend(LocalBackend):
    """mmengine's backend for local files, writing by :func:`write_atomically` and removing nothing before.

    :class:`mmengine.hooks.CheckpointHook` removes an old checkpoint, then saves a new one: with ``max_keep_ckpts=1`` an
    interruption in between leaves none. Here files are removed once the next one is written.

    Args:
        removed_later (list[str]): What to remove then; share it between backends of which one removes and another one writes.
    """

    def __init__(self, removed_later: list[str]) -> None:
        self.removed_later = removed_later

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write bytes to a file, then remove what was to be removed."""
        write_atomically(obj, str(filepath))
        while self.removed_later:
            path = self.removed_later.pop()
            if path != str(filepath) and osp.isfile(path):
                os.remove(path)

    def remove(self, filepath: str | Path) -> None:
        """Remove a file after the next :meth:`put`."""
        self.removed_later.append(str(filepath))


def is_intact(path: str) -> bool:
    """Return whether a file is a checkpoint without a missing or changed byte, by the check sums that torch writes."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, OSError, EOFError):
        return False


def latest_checkpoint(recorded: str | None, patterns: Iterable[str]) -> str | None:
    """Return the latest checkpoint that is intact.

    Args:
        recorded (str, optional): What mmengine wrote down as the last one: the first to be tried.
        patterns (Iterable[str]): Paths of further ones, with '{}' for a number; the youngest is tried first.

    Returns:
        str | None: Its path; None if there is no checkpoint at all. A recorded one that is no local file (on remote storage,
        or a folder, as of DeepSpeed) is returned as it is.

    Raises:
        ValueError: If there are checkpoints, but none is intact, or if the recorded one is gone and there is no other.
    """
    if recorded and ('://' in recorded or osp.isdir(recorded)):
        return recorded
    found = sorted({path for pattern in patterns for path in _matches(pattern)}, key=osp.getmtime, reverse=True)
    candidates = [recorded] if recorded and osp.isfile(recorded) else []
    candidates += [path for path in found if not (candidates and osp.samefile(path, candidates[0]))]
    for path in candidates:
        if is_intact(path):
            return path
        print_log(f'The checkpoint {path} ({osp.getsize(path):,} bytes) is truncated or damaged and left out.', 'current', 30)
    if recorded and not candidates:
        raise ValueError(
            f'Expected to resume from {recorded}, which last_checkpoint names, but neither it nor another one is there. Bring '
            'it back, name another one (--resume PATH), or remove last_checkpoint to start from the beginning.'
        )
    if candidates:
        raise ValueError(
            f'Expected an intact checkpoint to resume from, but {", ".join(candidates)} are truncated or damaged. Copy one '
            'here again, name another one (--resume PATH), or remove them to start from the beginning.'
        )
    return None


def _matches(pattern: str) -> list[str]:
    folder, name = osp.split(pattern)
    if not osp.isdir(folder):
        return []
    expression = re.escape(name).replace(re.escape('{}'), r'\d+')
    paths = [osp.join(folder, other) for other in os.listdir(folder) if re.fullmatch(expression, other)]
    return [path for path in paths if osp.isfile(path)]
