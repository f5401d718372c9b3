"""What was recorded of the runs, and what every record says of its origin."""

import json
import platform
import re
import subprocess
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from threading import Lock
from typing import Any

import torch

from benchmarks.runner import ROOT
from dskd_mm.optim import amp_dtype
from dskd_mm.optim.bf16 import CPU_INFO
from dskd_mm.utils.atomic import write_atomically

RESULTS = ROOT / 'benchmarks' / 'results' / 'accuracy.jsonl'
LOCK = Lock()


def records(path: Path | None = None) -> list[dict]:
    """Return all records of a file of JSON lines.

    Args:
        path (Path, optional): None takes the published results of the accuracy benchmark. Defaults to None.
    """
    path = path or RESULTS
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def rewrite(path: Path, rows: Sequence[dict]) -> None:
    """Replace a file of records by others: whole, or not at all."""
    write_atomically(''.join(json.dumps(row) + '\n' for row in rows).encode(), str(path))


def append(path: Path, rows: Iterable[dict]) -> None:
    """Append records to a file, at once; threads take turns."""
    text = ''.join(json.dumps(row) + '\n' for row in rows)
    with LOCK, open(path, 'a') as file:
        file.write(text)


def origin(revision: str | None = None) -> dict:
    """Return what every record says of where it comes from.

    Args:
        revision (str, optional): The commit at which it began. Defaults to the one that is checked out.
    """
    return dict(commit=commit() if revision is None else revision, versions=versions(), processor=processor())


def processor() -> str:
    """Return the name of what calculates: the GPU's, or the CPU's model; '' where the system does not tell."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    info = CPU_INFO.read_text() if CPU_INFO.exists() else ''
    found = re.search(r'^model name\s*:\s*(.+)$', info, flags=re.MULTILINE)
    return found[1].strip() if found else ''


def commit() -> str:
    """Return the commit that is checked out, marked if the tree differs from it."""
    git = ['git', '-C', str(ROOT)]
    head = subprocess.run([*git, 'rev-parse', '--short', 'HEAD'], capture_output=True, text=True).stdout.strip()
    code = ['dskd_mm', 'configs', 'tools', 'examples', 'benchmarks/*.py']
    changed = subprocess.run([*git, 'status', '--porcelain', *code], capture_output=True, text=True).stdout
    return head + ('+changes' if changed.strip() else '')


def versions() -> dict[str, str]:
    """Return versions of what a result depends on."""
    found = dict(python=platform.python_version())
    packages = ('mmengine', 'mmcv', 'mmpretrain', 'mmdet', 'mmdetection', 'mmsegmentation')
    for name in ('torch', *(prefix + package for package in packages for prefix in ('onedl-', ''))):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def precision(amp: bool) -> str:
    """Return in which numbers a training runs, 'float32' or another.

    Args:
        amp (bool): Whether it is called with ``--amp``.
    """
    return str(amp_dtype() if amp else torch.float32).removeprefix('torch.')


def markdown(columns: Sequence[str], rows: Iterable[Iterable[Any]]) -> str:
    """Return a table of Markdown, without alignment: a row that changes leaves the others as they are."""
    return '\n'.join(f'| {" | ".join(map(str, row))} |' for row in (columns, ['---'] * len(columns), *rows))
