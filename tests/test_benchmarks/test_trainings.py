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
    rows = [{'loss': 1.0, 'step': 2}, {'accuracy/top1': 50.0, 'step': 1}]
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


def test_a_curve_has_the_seconds_of_training_before_each_evaluation(tmp_path):
    """Also of a run that was resumed, and trained some iterations a second time."""
    first, second = (
        [dict(loss=1.0, time=t, step=s, epoch=e) for s, t, e in rows]
        for rows in (
            ((10, 2.0, 1), (20, 1.0, 1), (30, 1.0, 2)),
            ((30, 3.0, 2), (40, 1.0, 2), (50, 9.0, 3)),
        )
    )
    evaluations = [{'accuracy': 50.0, 'time': 7.0, 'step': 1}, {'accuracy': 60.0, 'time': 7.0, 'step': 2}]
    for name, rows in (('1', [*first[:2], evaluations[0], *first[2:]]), ('2', [*second[:2], evaluations[1], second[2]])):
        log = tmp_path / name / 'vis_data' / 'scalars.json'
        log.parent.mkdir(parents=True)
        log.write_text('\n'.join(json.dumps(row) for row in rows))
    training = Training('configs/plain/resnet8-w8_fashion-mnist.py', tmp_path)
    assert training.curve('accuracy') == [(30.0, 50.0), (30.0 + 30.0 + 10.0, 60.0)]


def test_health_is_read_early_in_the_middle_and_late(tmp_path):
    training = Training('configs/plain/resnet8-w8_fashion-mnist.py', tmp_path)
    assert training.health() == {}
    rows = [dict(step=step, loss=1.0, dskd_gate=step / 100) for step in range(1, 101)]
    rows[-1]['dskd_kl_denoised'] = 0.5
    write_log(tmp_path, '1', rows[:60])
    write_log(tmp_path, '2', rows[50:])  # the last ten were trained again
    found = training.health()
    assert {place: figures['dskd_gate'] for place, figures in found.items()} == dict(early=0.235, middle=0.535, late=0.975)
    assert found['late']['dskd_kl_denoised'] == 0.5 and 'dskd_kl_denoised' not in found['early']
