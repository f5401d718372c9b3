"""The demo, in small."""

import contextlib
import importlib.util
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.visualization import Visualizer

ROOT = Path(__file__).parents[2]

pytest.importorskip('sklearn')

HOSTS = dict(cls='mmpretrain', det='mmdet', seg='mmseg')


def load_demo():
    spec = importlib.util.spec_from_file_location('demo', ROOT / 'tools/demo.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_demo(*args: str) -> subprocess.CompletedProcess:
    environment = dict(os.environ, OMP_NUM_THREADS='1', COLUMNS='100')
    command = [sys.executable, str(ROOT / 'tools/demo.py'), *args]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


class RunHere:
    """Stands for the process of a training, which runs in this one: importing the hosts anew takes most of a short run."""

    def __init__(self, command: list[str], stdout, **kwargs) -> None:
        self.returncode = 0
        argv, sys.argv = sys.argv, command[1:]
        try:
            with contextlib.redirect_stdout(stdout):
                runpy.run_path(str(ROOT / command[1]), run_name='__main__')
        finally:
            sys.argv = argv
            # Those of mmdet and mmseg have one name in all runs, by which the next run would find this one's.
            for kind in (Visualizer, *Visualizer.__subclasses__()):
                kind._instance_dict.clear()

    def poll(self) -> int:
        return self.returncode


@pytest.fixture
def demo(monkeypatch):
    """The demo as a module; its trainings run in this process."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv('COLUMNS', '100')
    module = load_demo()
    # Not the attribute of the library itself: mmengine starts processes, too.
    monkeypatch.setattr(module, 'subprocess', SimpleNamespace(Popen=RunHere, STDOUT=subprocess.STDOUT))
    # Laying out the text of a detector's config takes a second, five times in a run.
    monkeypatch.setattr('yapf.yapflib.yapf_api.FormatCode', lambda text, **_: (text, True))
    # With more threads sums are added up in another order, and later tests compare bit by bit.
    threads = torch.get_num_threads()
    yield module
    torch.set_num_threads(threads)


def say(demo, monkeypatch, capsys, *args: object) -> str:
    """What the demo prints when it is called with these arguments."""
    monkeypatch.setattr('sys.argv', ['tools/demo.py', *map(str, args)])
    capsys.readouterr()
    demo.main()
    return capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.timeout(900)  # under a minute alone on two cores
def test_classification_in_processes_of_its_own(tmp_path):
    pytest.importorskip('mmpretrain')
    result = run_demo('--task', 'cls', '--seeds', '1', '--epochs', '1', '--work-dir', str(tmp_path))
    assert result.returncode == 0, result.stdout + result.stderr
    for text in ('Teacher', 'Plain student', 'DSKD student', 'Accuracy', 'Step (ms)', 'says nothing about noise'):
        assert text in result.stdout
    assert result.stdout.count('started') == 3
    folder = tmp_path / 'cls'
    pictures = {path.stem for path in folder.glob('*.png')}
    assert pictures == {'accuracy', 'denoising_steps', 'denoising_plane', 'feature_maps'}
    assert all(str(folder / f'{name}.png') in result.stdout for name in pictures)
    assert not (tmp_path / 'data').exists(), 'no scenes are drawn that nobody looks at'


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_detection_and_segmentation_in_one_table(demo, tmp_path, monkeypatch, capsys):
    pytest.importorskip('mmdet')
    pytest.importorskip('mmseg')
    monkeypatch.delitem(demo.TASKS, 'cls')
    small = ('--seeds', 1, '--epochs', 1, '--scenes', 16, '--work-dir', tmp_path)
    first = say(demo, monkeypatch, capsys, *small)
    for text in ('Detection', 'mAP', 'Segmentation', 'mIoU', 'Gain', 'Step (ms)'):
        assert text in first
    assert first.count('started') == 6 and first.count('│ DSKD student') == 2
    assert first.count('says nothing about noise') == 2
    for task in ('det', 'seg'):
        assert {path.stem for path in (tmp_path / task).glob('*.png')} == {'accuracy', 'predictions'}
        assert str(tmp_path / task / 'predictions.png') in first
        assert str(tmp_path / task / 'dskd_seed0/student_last.pth') in first

    # A student whose settings were others is trained again; the rest is kept.
    (tmp_path / 'seg/plain_seed0/complete.json').write_text(json.dumps(dict(fingerprint='of other settings')))
    second = say(demo, monkeypatch, capsys, *small)
    assert second.count('kept') == 5
    assert second.count('started') == 1 and 'seg: Plain student, seed 0: started' in second


@pytest.mark.parametrize('args, words', [(('--task', 'depth'), ('depth', 'cls')), (('--seeds', '0'), ('0', 'from 1 on'))])
def test_wrong_arguments_are_explained(monkeypatch, capsys, args, words):
    monkeypatch.setattr('sys.argv', ['tools/demo.py', *args])
    with pytest.raises(SystemExit) as error:
        load_demo().parse_args()
    message = capsys.readouterr().err
    assert error.value.code == 2 and all(word in message for word in words)


@pytest.mark.parametrize(
    'missing, task, tasks, words',
    [
        ((), None, ['cls', 'det', 'seg'], ()),
        ((), 'seg', ['seg'], ()),
        (('mmdet',), None, ['cls', 'seg'], ('Detection is left out', 'mmdet', "'.[det,demo]'")),
        (('mmdet',), 'cls', ['cls'], ()),
        (('mmdet',), 'det', None, ('mmdet', "'.[det,demo]'")),
        (('sklearn',), None, None, ('sklearn', "'.[cls,demo]'")),
    ],
)
def test_what_lacks_its_host_is_left_out(monkeypatch, capsys, missing, task, tasks, words):
    demo = load_demo()
    monkeypatch.setattr(demo, 'find_spec', lambda module: None if module in missing else object())
    monkeypatch.setattr('sys.argv', ['tools/demo.py', *(('--task', task) if task else ())])
    if tasks is None:
        with pytest.raises(SystemExit):
            demo.parse_args()
        text = capsys.readouterr().err
    else:
        args = demo.parse_args()
        assert args.tasks == tasks
        text = ' '.join(args.left_out)
        assert bool(text) == bool(words)
    assert all(word in text for word in words)


def test_verdict_says_no_more_than_the_numbers():
    verdict = load_demo().verdict
    assert 'gained 3.00 points' in verdict(3.0, 1.0, 5.0, 3) and '60% of the gap' in verdict(3.0, 1.0, 5.0, 3)
    assert 'gain within noise' in verdict(0.4, 0.9, 5.0, 3)
    assert 'gain within noise' in verdict(-0.4, 0.9, 5.0, 3)
    assert 'lost 3.00 points' in verdict(-3.0, 1.0, 5.0, 3)
    assert 'says nothing' in verdict(9.0, 0.0, 5.0, 1)


def test_a_failed_run_shows_its_log(tmp_path):
    demo = load_demo()
    run = demo.Run('cls', 'plain', 0, tmp_path / 'run', {'model.type': 'NoSuchModel'})
    run.start()
    run.process.wait()
    with pytest.raises(SystemExit, match=r'NoSuchModel(.|\n)*failed'):
        run.finish()
    assert not run.is_complete()


def test_a_detector_that_finds_nothing_has_an_accuracy_of_zero(tmp_path):
    log = tmp_path / 'run/20260101_000000/vis_data/scalars.json'
    log.parent.mkdir(parents=True)
    rows = [{'loss': 1.0, 'step': 1}, {'time': 0.1, 'step': 1}, {'coco/bbox_mAP': 0.25, 'time': 0.1, 'step': 2}]
    log.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    run = load_demo().Run('det', 'plain', 0, tmp_path / 'run', {})
    assert run.curve() == [0.0, 25.0] and run.result == 25.0


@pytest.mark.parametrize('task', ['cls', 'det'])
def test_fingerprint_follows_the_settings_and_the_teacher(tmp_path, task):
    demo = load_demo()

    def students(epochs: int | None, scenes: int = 8) -> list[str]:
        settings = demo.DigitScenes(num_train=scenes)
        return [run.fingerprint() for run in demo.make_runs(task, tmp_path, 2, epochs, settings)]

    assert students(3) == students(3)
    assert len(set(students(3))) == 5, 'every run has its own'
    assert not set(students(3)) & set(students(4))
    assert bool(set(students(3)) & set(students(3, scenes=9))) == (task == 'cls')


@pytest.mark.parametrize('task', HOSTS)
def test_the_student_is_smaller_and_distilled_as_it_is(task):
    pytest.importorskip(HOSTS[task])
    demo = load_demo()
    teacher, plain, dskd = (demo.build_student(demo.Run(task, role, 0, Path('.'), {})) for role in demo.NAMES)
    sizes = [sum(parameter.numel() for parameter in model.parameters()) for model in (teacher, plain, dskd)]
    assert sizes[0] > 3 * sizes[1] and sizes[1] == sizes[2]
