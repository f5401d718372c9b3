"""Writing files so that an interruption leaves the older one intact."""

import errno
import io
import os
import os.path as osp
import shutil
from typing import Any

import torch

PARTIAL = '.partial'


def write_atomically(content: bytes, path: str) -> None:
    """Write a file beside its place and move it there once it is on the disk: a reader finds all of it or what was before.

    Args:
        content (bytes): What to write.
        path (str): The file.

    Raises:
        OSError: If it cannot be written, as on a full disk. What was at ``path`` is still there.
    """
    folder, partial = osp.dirname(osp.abspath(path)), path + PARTIAL
    try:
        os.makedirs(folder, exist_ok=True)
        with open(partial, 'wb') as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError as error:
        if osp.isdir(folder) and osp.lexists(partial):
            os.remove(partial)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(error.errno, f'{error.strerror}: {path!r} was not written: choose a folder that can be') from error
        raise OSError(
            error.errno,
            f'{error.strerror}: {path!r} expects {len(content):,} bytes (free on its disk: '
            f'{shutil.disk_usage(folder).free:,}). It was not written, older checkpoints are intact: make room, then go on '
            'with --resume',
        ) from error
    # Otherwise a power failure could undo the move, or do it before the content.
    directory = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(directory)
    except OSError:
        pass  # some file systems do not know it
    finally:
        os.close(directory)


def save_atomically(checkpoint: dict[str, Any], path: str) -> None:
    """Save a checkpoint by :func:`write_atomically`, so that an interruption leaves the older one intact."""
    with io.BytesIO() as buffer:
        torch.save(checkpoint, buffer)
        write_atomically(buffer.getvalue(), path)
