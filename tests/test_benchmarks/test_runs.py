"""What the benchmark trains, and what it records of it, with a training that takes no time."""

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import IO

import pytest
import torch

from benchmarks import accuracy, records, runner, search

EPOCHS = 3


@pytest.fixture
def trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The configs that were 'trained', in their order; the teacher's checkpoint is in the test's folder."""
    found: list[str] = []

    def train(command: list[str], log: IO[str]) -> SimpleNamespace:
        if 'tools/train.py' not in command:
            return exited(1)  # there is no checkpoint to test
        config, work_dir = command[2], Path(command[command.index('--work-dir') + 1])
        found.append(config)
        time.sleep(0.2)
        log = work_dir / 'run' / 'vis_data' / 'scalars.json'
        log.parent.mkdir(parents=True, exist_ok=True)
        values = [{'accuracy/top1': 50.0 + i, 'accuracy/top5': 80.0, 'time': 0.1, 'step': EPOCHS - i} for i in (1, 0)]
        log.write_text(''.join(json.dumps({'loss': 1.0, 'step': 7}) + '\n' + json.dumps(value) + '\n' for value in values))
        if config == accuracy.SETTINGS['fashion-mnist'].teacher:
            (work_dir / 'epoch.pth').write_bytes(b'weights')
        return exited(0)

    monkeypatch.setattr(accuracy.Setting, 'teacher_checkpoint', property(lambda self: tmp_path / 'teacher' / 'epoch.pth'))
    monkeypatch.setattr(accuracy.Setting, 'teacher_epochs', EPOCHS)
    for module in (runner, accuracy):
        monkeypatch.setattr(module, 'start', train)
    return found


def exited(code: int) -> SimpleNamespace:
    """A process that has ended."""
    return SimpleNamespace(wait=lambda: code)


def benchmark(folder: Path, monkeypatch: pytest.MonkeyPatch, methods: str, seeds: str = '0') -> list[dict]:
    """Call the benchmark: all that is recorded then."""
    results = folder / 'accuracy.jsonl'
    arguments = ['--dataset', 'fashion-mnist', '--methods', methods, '--seeds', seeds, '--epochs', str(EPOCHS), '--jobs', '2']
    arguments += ['--results', str(results), '--work-dir', str(folder / 'runs')]
    monkeypatch.setattr(sys, 'argv', ['accuracy.py', *arguments])
    accuracy.main()
    return accuracy.records(results)


def test_the_teacher_is_trained_first_where_it_is_missing_and_once(tmp_path, monkeypatch, trained):
    teacher, kd = (accuracy.SETTINGS['fashion-mnist'].config(name) for name in ('teacher', 'kd'))
    rows = benchmark(tmp_path, monkeypatch, 'plain', '0,1')
    assert [r['variant'] for r in rows] == ['plain'] * 2
    # Those after the last epoch, not the best ones, and all of them.
    assert all(r['value'] == 50 and r['metrics'] == {'accuracy/top1': 50, 'accuracy/top5': 80} for r in rows)
    trained.clear()  # a plain student has no teacher
    rows = benchmark(tmp_path, monkeypatch, 'kd,teacher', '0,1')
    assert trained == [teacher, kd, kd]
    assert all(('--method kd' in r['command']) == (r['variant'] == 'kd') for r in rows)
    assert (rows[2]['variant'], rows[2]['seed']) == ('teacher', 0)
    # Each record says by whom its student was taught.
    taught = {r['teacher'] for r in rows if r['variant'] == 'kd'}
    assert taught == {rows[2]['teacher']} and not any('teacher' in r for r in rows if r['variant'] == 'plain')
    # What is recorded needs no teacher; what is not does, and the teacher's record stays the one that it was.
    accuracy.SETTINGS['fashion-mnist'].teacher_checkpoint.unlink()
    assert benchmark(tmp_path, monkeypatch, 'kd', '0,1') == rows
    assert trained == [teacher, kd, kd]
    more = benchmark(tmp_path, monkeypatch, 'kd', '2')
    assert trained[3:] == [teacher, kd] and len(more) == len(rows) + 1


@pytest.mark.parametrize('dtype', ['bfloat16', 'float32'])
def test_a_record_names_the_precision_that_ran_and_where(tmp_path, monkeypatch, trained, dtype):
    monkeypatch.setattr(records, 'amp_dtype', lambda: getattr(torch, dtype))
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(records, 'CPU_INFO', tmp_path / 'cpuinfo')
    assert records.processor() == '', 'not every system tells'
    (tmp_path / 'cpuinfo').write_text('model\t\t: 7\nmodel name\t: A Processor, 3 GHz\nmodel name\t: Another\n')
    (row,) = benchmark(tmp_path, monkeypatch, 'plain')
    assert '--amp' in row['command'] and row['precision'] == dtype
    assert row['processor'] == 'A Processor, 3 GHz'


def test_two_calls_that_meet_train_and_record_once(tmp_path, monkeypatch, trained):
    with ThreadPoolExecutor(2) as pool:
        for job in [pool.submit(benchmark, tmp_path, monkeypatch, 'plain') for _ in range(2)]:
            job.result()
    assert len(trained) == 1
    assert [r['variant'] for r in accuracy.records(tmp_path / 'accuracy.jsonl')] == ['plain']


def test_the_table_and_the_picture_of_what_is_recorded(tmp_path, monkeypatch, trained, capsys):
    benchmark(tmp_path, monkeypatch, 'plain,kd', '0,1')
    printed = capsys.readouterr().out
    assert '| plain student | 50.00 ± 0.00 |' in printed and '| KD | 50.00 ± 0.00 | +0.00 |' in printed
    picture = tmp_path / 'runs' / 'fashion-mnist' / f'test-{EPOCHS}e' / 'accuracy.png'
    assert picture.stat().st_size > 1000 and str(picture) in printed
    trained.clear()
    benchmark(tmp_path, monkeypatch, 'plain,kd', '0,1')
    assert not trained and '| KD | 50.00 ± 0.00 |' in capsys.readouterr().out


@pytest.mark.parametrize('fails', ['student', 'teacher', 'judge'])
def test_what_fails_is_told_and_the_rest_is_recorded(tmp_path, monkeypatch, trained, capsys, fails):
    setting = accuracy.SETTINGS['fashion-mnist']
    broken = setting.teacher if fails == 'teacher' else setting.config('dskd')
    train = runner.start

    def run(command: list[str], log: IO[str]) -> SimpleNamespace:
        is_broken = broken in command and '--method' not in command
        if is_broken and fails != 'judge':
            return exited(7)
        done = train(command, log)
        if is_broken and 'tools/train.py' in command:
            for log in Path(command[command.index('--work-dir') + 1]).glob('*/vis_data/scalars.json'):
                log.write_text(json.dumps({'another/metric': 1.0, 'step': EPOCHS}))
        return done

    for module in (runner, accuracy):
        monkeypatch.setattr(module, 'start', run)
    with pytest.raises(SystemExit) as exit_:
        benchmark(tmp_path, monkeypatch, 'plain,kd,dskd')
    assert exit_.value.code == 1
    printed = capsys.readouterr().out
    rows = {r['variant'] for r in accuracy.records(tmp_path / 'accuracy.jsonl')}
    if fails == 'student':
        assert rows == {'teacher', 'plain', 'kd'} and 'dskd-s0: RuntimeError: exit status 7' in printed
    elif fails == 'judge':
        assert rows == {'teacher', 'plain', 'kd'} and 'FAILED fashion-mnist/test-3e/dskd-s0: ' in printed
        assert '| KD | 50.00 |' in printed
    else:
        assert rows == {'plain'} and 'kd-s0: its teacher is missing' in printed and 'dskd-s0: its teacher' in printed


def test_it_may_be_called_from_anywhere(tmp_path, monkeypatch, trained):
    for module in (runner, accuracy):
        monkeypatch.setattr(module, 'ROOT', tmp_path)
    monkeypatch.setattr(accuracy.Run, 'claim', lambda self, revision: revision)
    monkeypatch.chdir(Path.home())
    run = accuracy.Run('fashion-mnist', 'plain', 0, EPOCHS, False, tmp_path / 'accuracy.jsonl', Path('work_dirs/runs'))
    assert run.work_dir == tmp_path / 'work_dirs' / 'runs' / run.name
    # A training has the root as its working directory, where this is the same folder.
    command = run.training.command
    assert command[command.index('--work-dir') + 1] == f'work_dirs/runs/{run.name}'


def test_the_search_runs_every_factor_and_names_the_best(tmp_path, monkeypatch, trained, capsys):
    given = ['--dataset', 'fashion-mnist', '--methods', 'kd', '--factors', '0.3,1', '--epochs', str(EPOCHS)]
    given += ['--results', str(tmp_path / 'accuracy.jsonl'), '--work-dir', str(tmp_path / 'runs')]
    search.main(given)
    rows = {r['variant']: r for r in accuracy.records(tmp_path / 'accuracy.jsonl') if r['variant'] != 'teacher'}
    assert set(rows) == {'plain', 'kd', 'kd-x0.3'} and {r['split'] for r in rows.values()} == {'holdout'}
    assert 'model.distill_weight=0.3' in rows['kd-x0.3']['command'] and '--method kd' in rows['kd-x0.3']['command']
    assert rows['kd']['curve'] == [[0.0, 51.0], [0.0, 50.0]]  # the log of these runs knows no time
    assert 'chosen: kd' in capsys.readouterr().out
    with pytest.raises(SystemExit):
        search.main([*given, '--methods', 'plain'])
