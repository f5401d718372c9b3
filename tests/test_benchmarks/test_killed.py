"""A benchmark that is killed at any point may simply be called again."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import accuracy, runner

SEEDS = (0, 1)
EPOCHS = 3
# Stands for a training, which tests/test_robustness/test_interruption.py kills: it lasts until it is told to end.
TRAINING = f"""
import json, os, pathlib, sys, time
folder = pathlib.Path(sys.argv[sys.argv.index('--work-dir') + 1])
with open(folder / 'starts', 'a') as file:
    file.write(f'{{os.getpid()}} ')
while not (folder.parent / 'go').exists():
    time.sleep(0.05)
log = folder / 'run/vis_data/scalars.json'
log.parent.mkdir(parents=True)
log.write_text(json.dumps({{'accuracy/top1': 50.0 + int(folder.name[-1]), 'step': {EPOCHS}}}))
"""
DRIVER = f"""
import sys
from benchmarks import accuracy, runner
runner.Training.command = property(lambda self: [sys.executable, '-c', {TRAINING!r}, '--work-dir', str(self.folder)])
accuracy.main()
"""


def arguments(folder: Path) -> list[str]:
    """Arguments of a benchmark of two runs at once."""
    options = ['--dataset', 'fashion-mnist', '--methods', 'plain', '--seeds', ','.join(map(str, SEEDS)), '--jobs', '2']
    options += ['--epochs', str(EPOCHS), '--results', str(folder / 'accuracy.jsonl'), '--work-dir', str(folder / 'runs')]
    return options


def start(folder: Path) -> subprocess.Popen:
    """Start the benchmark in a process of its own."""
    command = [sys.executable, '-c', DRIVER, *arguments(folder)]
    return subprocess.Popen(command, cwd=runner.ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def wait_for(condition: Callable[[], bool], process: subprocess.Popen, seconds: float = 240) -> None:
    """Wait until something is true while a process runs."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.stderr.read().decode()
        assert time.monotonic() < end
        time.sleep(0.05)


def has_open(process: subprocess.Popen, path: Path) -> bool:
    """Whether a process has a file open."""
    descriptors = Path(f'/proc/{process.pid}/fd')
    try:
        return path.resolve() in [descriptor.resolve() for descriptor in descriptors.iterdir()]
    except FileNotFoundError:  # one was closed meanwhile
        return False


@pytest.mark.skipif(not Path('/proc/self/fd').is_dir(), reason='needs /proc')
def test_what_is_killed_is_finished_by_the_next_call_as_if_nothing_had_happened(tmp_path, monkeypatch):
    folders = [tmp_path / 'runs' / f'fashion-mnist/test-{EPOCHS}e/plain-s{seed}' for seed in SEEDS]

    def starts() -> list[list[int]]:
        """Process ids of the trainings of each run, in their order."""
        files = [folder / 'starts' for folder in folders]
        return [list(map(int, file.read_text().split())) if file.exists() else [] for file in files]

    # Once while its trainings run: they live on, and the next call has to wait for them, not to start them twice.
    process = start(tmp_path)
    wait_for(lambda: all(starts()), process)
    process.kill()
    process.communicate()
    trainings = starts()
    process = start(tmp_path)
    wait_for(lambda: all(has_open(process, folder / 'train.log') for folder in folders), process)
    assert starts() == trainings and all(len(own) == 1 for own in trainings)
    # And once with the trainings themselves.
    process.kill()
    process.communicate()
    for (pid,) in trainings:
        os.kill(pid, signal.SIGKILL)
    (folders[0].parent / 'go').touch()
    command = property(lambda self: [sys.executable, '-c', TRAINING, '--work-dir', str(self.folder)])
    monkeypatch.setattr(runner.Training, 'command', command)
    monkeypatch.setattr(sys, 'argv', ['accuracy.py', *arguments(tmp_path)])
    for _ in range(2):  # nothing is trained again
        accuracy.main()
        rows = [json.loads(line) for line in (tmp_path / 'accuracy.jsonl').read_text().splitlines()]
        assert sorted((row['seed'], row['value']) for row in rows) == [(0, 50.0), (1, 51.0)]
        assert [len(own) for own in starts()] == [2, 2]
