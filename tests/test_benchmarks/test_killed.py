"""A benchmark that is killed at any point may simply be called again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EPOCHS, SEEDS = 3, (0, 1)
# The benchmark with a data set of a few seconds instead of its own.
DRIVER = f"""
import sys
sys.path.insert(0, {str(ROOT / 'benchmarks')!r})
import accuracy
accuracy.SETTINGS['digits'] = accuracy.Setting(
    task='cls',
    pair='small large',
    student='configs/demo/cls_plain.py',
    teacher='configs/demo/cls_teacher.py',
    distilled='none.py',
    metric='accuracy/top1',
    epochs={EPOCHS},
    train_images=898,
    interval=1,
)
accuracy.main()
"""

def start(folder: Path) -> subprocess.Popen:
    """Start the benchmark with what it writes in a folder."""
    options = ['--dataset', 'digits', '--methods', 'plain', '--seeds', ','.join(map(str, SEEDS)), '--jobs', '2']
    options += ['--results', str(folder / 'accuracy.jsonl'), '--work-dir', str(folder / 'runs')]
    command = [sys.executable, '-c', DRIVER, *options]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def finish(folder: Path) -> dict[int, float]:
    """Run the benchmark to its end: the recorded value of each seed."""
    process = start(folder)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, output.decode()
    rows = [json.loads(line) for line in (folder / 'accuracy.jsonl').read_text().splitlines()]
    assert sorted(row['seed'] for row in rows) == list(SEEDS), output.decode()
    return {row['seed']: row['value'] for row in rows}


@pytest.mark.slow
def test_what_is_killed_is_finished_by_the_next_call_as_if_nothing_had_happened(tmp_path: Path) -> None:
    pytest.importorskip('mmpretrain')
    pytest.importorskip('sklearn')
    whole, killed = tmp_path / 'whole', tmp_path / 'killed'
    for folder in (whole, killed):
        folder.mkdir()
    expected = finish(whole)
    log = killed / 'runs' / f'digits/test-{EPOCHS}e/plain-s0' / 'train.log'
    process = start(killed)
    # Once while its trainings run: they live on, and the next call has to wait for them, not to start them twice.
    wait_for(lambda: log.exists() and 'Epoch(train)' in log.read_text(), process)
    process.kill()
    process.communicate()
    assert not (killed / 'accuracy.jsonl').exists()
    # And once with the trainings themselves.
    process = start(killed)
    time.sleep(1)
    process.kill()
    process.communicate()
    for pid in trainings_in(killed):
        os.kill(pid, signal.SIGKILL)
    assert finish(killed) == expected
    # Nothing was trained twice, and nothing is trained again.
    stamp = log.stat().st_mtime_ns
    assert finish(killed) == expected and log.stat().st_mtime_ns == stamp


def wait_for(condition, process: subprocess.Popen, seconds: float = 120) -> None:
    """Wait until something is true while a process runs."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.1)


def trainings_in(folder: Path) -> list[int]:
    """Process ids of the trainings that write into a folder."""
    result = subprocess.run(['pgrep', '-f', f'tools/train.py .*{folder}'], capture_output=True, text=True)
    return [int(pid) for pid in result.stdout.split()]
