"""One training as a process of its own: its command, its folder, what it has logged. The benchmark and the demo run these."""

import hashlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, Any

from mmengine.config import Config

from dskd_mm.report import read_scalars

ROOT = Path(__file__).resolve().parents[1]
# One thread each: two runs at once make better use of two cores than two threads of one. The root: for examples.
ENVIRONMENT = {
    **os.environ,
    'OMP_NUM_THREADS': '1',
    'PYTHONPATH': os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')])),
}


@dataclass(frozen=True)
class Training:
    """One run of ``tools/train.py``.

    Attributes:
        config (str): Path of its config, from the repository's root.
        work_dir (Path): Its folder, absolute or from the repository's root.
        options (Mapping[str, Any]): What is changed of the config, as for ``--cfg-options``. Defaults to {}.
        flags (tuple[str, ...]): Further arguments, such as ``--resume``. Defaults to ().
    """

    config: str
    work_dir: Path
    options: Mapping[str, Any] = field(default_factory=dict)
    flags: tuple[str, ...] = ()

    @property
    def command(self) -> list[str]:
        """The command line, to be run in the repository's root."""
        command = [sys.executable, 'tools/train.py', self.config, '--work-dir', str(self.work_dir), *self.flags]
        return [*command, '--cfg-options', *(f'{key}={value}' for key, value in self.options.items())]

    @property
    def folder(self) -> Path:
        """Its folder, absolute."""
        return ROOT / self.work_dir

    @cached_property
    def cfg(self) -> Config:
        """The config as the training reads it."""
        cfg = Config.fromfile(ROOT / self.config)
        cfg.merge_from_dict(dict(self.options))
        return cfg

    def fingerprint(self, *others: Any) -> str:
        """Return a hash that changes with the config, the options and whatever else is given, but not with the root's place."""
        text = json.dumps([Config.fromfile(ROOT / self.config).to_dict(), self.options, *others], sort_keys=True, default=str)
        return hashlib.sha256(text.replace(str(ROOT), '').encode()).hexdigest()

    def start(self, log: IO[str]) -> subprocess.Popen:
        """Start it.

        Args:
            log (IO[str]): The file that gets what it prints.
        """
        return start(self.command, log)

    def curve(self, metric: str) -> list[tuple[float, float]]:
        """Return the seconds of training before each evaluation, and what it has found, oldest first.

        The seconds are those of iterations, of all processes that took part if it was resumed; evaluations do not count.

        Args:
            metric (str): Key of the metric in the logs.
        """
        rows = read_scalars(self.folder)
        steps = {row['step']: row for row in rows if 'loss' in row and 'time' in row}
        found = []
        for epoch, value in ((row['step'], row[metric]) for row in rows if metric in row):
            seconds, before = 0.0, 0
            for step in sorted(step for step, row in steps.items() if row.get('epoch', 0) <= epoch):
                seconds, before = seconds + steps[step]['time'] * (step - before), step
            found.append((seconds, value))
        return found

    def health(self) -> dict[str, dict[str, float]]:
        """Return what was logged of the diffusion's health, early, in the middle and late; {} where nothing was.

        Each figure is a mean over a tenth of the log entries, at most six of them: at a fifth and a half of the training, and
        at its end.
        """
        rows = [row for row in read_scalars(self.folder) if 'loss' in row]
        names = [name for name in (rows or [{}])[-1] if name.startswith('dskd_')]
        size = max(1, min(6, len(rows) // 10))
        found = {}
        for place, share in dict(early=0.2, middle=0.5, late=1.0).items():
            begin = min(int(share * len(rows)), len(rows) - size)
            values = {name: [row[name] for row in rows[begin:][:size] if name in row] for name in names}
            found[place] = {name: round(statistics.mean(value), 4) for name, value in values.items() if value}
        return found if names else {}

    def evaluations(self) -> list[dict[str, Any]]:
        """Return what each evaluation has logged so far, oldest first."""
        return [row for row in read_scalars(self.folder) if 'loss' not in row]


def start(command: list[str], log: IO[str]) -> subprocess.Popen:
    """Start one of the tools in the repository's root, with one thread.

    Args:
        command (list[str]): Its command line.
        log (IO[str]): The file that gets what it prints.
    """
    return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, env=ENVIRONMENT)
