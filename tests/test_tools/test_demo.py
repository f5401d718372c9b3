"""The demo, in small."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

pytest.importorskip('mmpretrain')
pytest.importorskip('sklearn')


def load_demo():
    spec = importlib.util.spec_from_file_location('demo', ROOT / 'tools/demo.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_demo(*args: str) -> subprocess.CompletedProcess:
    environment = dict(os.environ, OMP_NUM_THREADS='1', COLUMNS='100')
    command = [sys.executable, str(ROOT / 'tools/demo.py'), *args]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.timeout(900)  # under a minute alone on two cores
def test_demo_trains_reports_draws_and_keeps_what_is_complete(tmp_path):
    small = ('--seeds', '1', '--epochs', '1', '--work-dir', str(tmp_path))
    first = run_demo(*small)
    assert first.returncode == 0, first.stdout + first.stderr
    for text in ('Teacher', 'Plain student', 'DSKD student', 'Accuracy (%)', 'Step (ms)', 'says nothing about noise'):
        assert text in first.stdout
    assert first.stdout.count('started') == 3
    folder = tmp_path / 'cls'
    pictures = {path.stem for path in folder.glob('*.png')}
    assert pictures == {'accuracy', 'denoising_steps', 'denoising_plane', 'feature_maps'}
    assert all(str(folder / f'{name}.png') in first.stdout for name in pictures)

    # A student whose settings were others is trained again, with the picture of it; the rest is kept.
    marker = folder / 'plain_seed0/complete.json'
    marker.write_text(json.dumps(dict(fingerprint='of other settings')))
    second = run_demo(*small)
    assert second.returncode == 0, second.stdout + second.stderr
    assert second.stdout.count('kept') == 2
    assert second.stdout.count('started') == 1 and 'Plain student, seed 0: started' in second.stdout


@pytest.mark.parametrize('args', [('--task', 'det'), ('--seeds', '0')])
def test_wrong_arguments_are_explained(args):
    result = run_demo(*args)
    assert result.returncode == 2
    assert args[1] in result.stderr and ('cls' in result.stderr if args[0] == '--task' else 'from 1 on' in result.stderr)


def test_verdict_says_no_more_than_the_numbers():
    verdict = load_demo().verdict
    assert 'gained 3.00 points' in verdict(3.0, 1.0, 5.0, 3) and '60% of the gap' in verdict(3.0, 1.0, 5.0, 3)
    assert 'gain within noise' in verdict(0.4, 0.9, 5.0, 3)
    assert 'gain within noise' in verdict(-0.4, 0.9, 5.0, 3)
    assert 'lost 3.00 points' in verdict(-3.0, 1.0, 5.0, 3)
    assert 'says nothing' in verdict(9.0, 0.0, 5.0, 1)


def test_a_failed_run_shows_its_log(tmp_path):
    demo = load_demo()
    run = demo.Run('plain', 0, ROOT / 'configs/demo/cls_plain.py', tmp_path / 'run', {'model.type': 'NoSuchModel'})
    run.start()
    run.process.wait()
    with pytest.raises(SystemExit, match=r'NoSuchModel(.|\n)*failed'):
        run.finish()
    assert not run.is_complete()


def test_fingerprint_follows_the_settings_and_the_teacher(tmp_path):
    demo = load_demo()

    def students(epochs: int | None, work_dir: Path = tmp_path) -> list[str]:
        runs = demo.make_runs('cls', demo.TASKS['cls'], work_dir, 2, epochs)
        return [run.fingerprint() for run in runs]

    assert students(3) == students(3)
    assert len(set(students(3))) == 5, 'every run has its own'
    assert not set(students(3)) & set(students(4))
