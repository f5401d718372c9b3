"""Trainings in processes that are killed: whole runs of tools/train.py, forked from a server that has imported everything."""

import gc
import multiprocessing as mp
import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from support.tools import run_script

_CONTEXT = mp.get_context('forkserver')
# Imported once instead of in each process, where it would take longer than the training.
_CONTEXT.set_forkserver_preload(['support.interruption', 'dskd_mm', 'mmpretrain.apis', 'mmdet.apis', 'mmseg.apis'])


class Training:
    """A run of a training script in a process of its own.

    Args:
        script (Path): The script.
        arguments (Sequence[Any]): What follows its name on the command line.
        log (Path): File for what it prints.
        kill_at (str, optional): How the name of a file begins, in the midst of whose writing the process kills itself. Defaults
            to None.
    """

    def __init__(self, script: Path, arguments: Sequence[Any], log: Path, kill_at: str | None = None) -> None:
        self.log = log
        # Without a lock, as one process alone writes: whoever is killed while it holds a lock never gives it back.
        self._calls = _CONTEXT.RawValue('q', 0)
        arguments = [str(argument) for argument in arguments]
        self.process = _CONTEXT.Process(target=_work, args=(str(script), arguments, str(log), self._calls, kill_at))
        self.process.start()

    @property
    def calls(self) -> int:
        """How many times the runner has called its hooks, a clock of the run that no load of the machine disturbs."""
        return self._calls.value

    def finish(self, timeout: float = 1000) -> int:
        """Wait for the end and return the exit code: 0, or -9 of a process that was killed."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.process.kill()
            raise TimeoutError(f'The training takes more than {timeout} s:\n{self.log.read_text()[-2000:]}')
        return self.process.exitcode

    def kill_after(self, calls: int, delay: float) -> bool:
        """Send SIGKILL so many calls of hooks and seconds after the start.

        Returns:
            bool: Whether the process was still there to be killed.

        Raises:
            AssertionError: If it failed by itself.
        """
        while self.calls < calls and self.process.is_alive():
            time.sleep(0.002)
        time.sleep(delay)
        self.process.kill()
        code = self.finish()
        assert code in (0, -9), self.log.read_text()[-4000:]
        return code == -9


def kill_at_random(
    script: Path, arguments: Sequence[Any], work_dir: Path, calls: int, kills: int, source: random.Random
) -> list[int]:
    """Start a training, kill it and resume it, several times, and let it end.

    Args:
        script (Path): The training script.
        arguments (Sequence[Any]): Its arguments; ``--work-dir`` and ``--resume`` are added, the latter from the beginning on.
        work_dir (Path): Folder of the run; what it prints goes to ``<work_dir>.log``.
        calls (int): How many times the runner of an uninterrupted training calls its hooks.
        kills (int): How many processes to kill.
        source (random.Random): Where the points come from: one of the calls that are left, and up to 50 ms after it.

    Returns:
        list[int]: After how many calls of its process each kill came.
    """
    command, log = [*arguments, '--work-dir', work_dir, '--resume'], Path(f'{work_dir}.log')
    points: list[int] = []
    done = 0
    while len(points) < kills:
        training = Training(script, command, log)
        if training.kill_after(source.randrange(1, max(2, calls - done)), source.uniform(0, 0.05)):
            points.append(training.calls)
            done += training.calls  # or less, where it falls back behind the last checkpoint
        else:
            # The machine was too busy to kill it in time.
            shutil.rmtree(work_dir)
            done = 0
    assert Training(script, command, log).finish() == 0, log.read_text()[-4000:]
    return points


def _work(script: str, arguments: list[str], log: str, calls: Any, kill_at: str | None) -> None:
    """What a process does."""
    import cv2
    import torch
    from mmengine.runner import Runner

    gc.freeze()  # each of mmengine's data sets collects garbage, among all that has been imported
    torch.set_num_threads(1)
    cv2.setNumThreads(0)
    call_hook, fsync = Runner.call_hook, os.fsync

    def counted(runner: Runner, name: str, **kwargs: Any) -> None:
        calls.value += 1
        call_hook(runner, name, **kwargs)

    def killed(descriptor: int) -> None:
        path = os.readlink(f'/proc/self/fd/{descriptor}')
        if kill_at is not None and os.path.basename(path).startswith(kill_at):
            os.ftruncate(descriptor, os.path.getsize(path) // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        fsync(descriptor)

    with open(log, 'a', encoding='utf-8') as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    with (
        mock.patch.object(Runner, 'call_hook', counted),
        mock.patch('os.fsync', killed),
        # The runner prints its config often, and formatting takes longer than these runs.
        mock.patch('yapf.yapflib.yapf_api.FormatCode', lambda text, **options: (text, True)),
    ):
        run_script(Path(script), *arguments)
    sys.exit(0)
