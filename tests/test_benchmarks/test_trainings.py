"""Reading logs, and what a training's hash follows."""

import json
from pathlib import Path

from benchmarks.runner import ROOT, Training
from dskd_mm.report import read_scalars


def write_log(folder: Path, start: str, rows: list[dict], tail: str = '') -> None:
    log = folder / start / 'vis_data' / 'scalars.json'
    log.parent.mkdir(parents=True)
    log.write_text(''.join(json.dumps(row) + '\n' for row in rows) + tail)


def test_read_scalars(tmp_path):
    assert read_scalars(tmp_path) == []
    first = {'loss': 9.0, 'step': 1}
    write_log(tmp_path, '20260101_000000', [first], tail='{"loss": 0.')
    rows = [{'loss': 1.0, 'step': 1}, {'accuracy/top1': 50.0, 'step': 1}]
    # A resumed run goes on in a log of its own, and a line that is being written does not count.
    write_log(tmp_path, '20260102_000000', rows, tail='{"loss": 0.')
    assert read_scalars(tmp_path) == [first, *rows]
    assert Training('x.py', tmp_path).evaluations() == rows[1:]


def test_the_command_and_its_hash(tmp_path):
    config = 'configs/plain/resnet8-w8_fashion-mnist.py'
    training = Training(config, Path('work_dirs/x'), {'randomness.seed': 1}, ('--resume',))
    options = ['--work-dir', 'work_dirs/x', '--resume', '--cfg-options', 'randomness.seed=1']
    assert training.command[1:] == ['tools/train.py', config, *options]
    assert training.folder == ROOT / 'work_dirs/x' and training.cfg.randomness.seed == 1
    hashes = {training.fingerprint(), training.fingerprint('other data'), Training(config, Path('x')).fingerprint()}
    assert len(hashes) == 3
    # Neither the folder nor the place of the repository is part of it.
    moved = Training(config, tmp_path, {'randomness.seed': 1, 'load_from': str(ROOT / 'a.pth')})
    assert moved.fingerprint() == Training(config, Path('y'), {'randomness.seed': 1, 'load_from': '/a.pth'}).fingerprint()
