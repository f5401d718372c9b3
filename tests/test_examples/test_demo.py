"""The demo, in small."""

import contextlib
import io
import json
import runpy
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import IO

import pytest
from mmengine.registry import MODELS
from mmengine.visualization import Visualizer

from benchmarks import runner
from benchmarks.runner import ROOT
from dskd_mm.utils.config import model_config, student_config

pytest.importorskip('sklearn')
from examples.digits import demo, experiments
from examples.digits.scenes import DigitScenes

HOSTS = dict(cls='mmpretrain', det='mmdet', seg='mmseg')


def start_here(command: list[str], log: IO[str]) -> SimpleNamespace:
    """Stand for the process of a tool, which runs in this one: importing the hosts anew takes most of a short run."""
    argv, sys.argv = sys.argv, command[1:]
    try:
        with contextlib.redirect_stdout(log):
            if command[1] == '-m':
                sys.argv = command[2:]
                runpy.run_module(command[2], run_name='__main__')
            else:
                runpy.run_path(str(ROOT / command[1]), run_name='__main__')
    finally:
        sys.argv = argv
        # Those of mmdet and mmseg have one name in all runs, by which the next run would find this one's.
        for kind in (Visualizer, *Visualizer.__subclasses__()):
            kind._instance_dict.clear()
    return SimpleNamespace(poll=lambda: 0)


@pytest.fixture
def say(monkeypatch, capsys):
    """Call the demo with its trainings in this process; what it prints."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv('COLUMNS', '100')
    for module in (runner, demo):
        monkeypatch.setattr(module, 'start', start_here)

    def call(*args: object) -> str:
        monkeypatch.setattr('sys.argv', ['demo.py', *map(str, args)])
        capsys.readouterr()
        demo.main()
        return capsys.readouterr().out

    return call


def test_classification(tmp_path, say):
    pytest.importorskip('mmpretrain')
    printed = say('--task', 'cls', '--seeds', 1, '--epochs', 1, '--work-dir', tmp_path)
    for text in ('Teacher', 'Plain student', 'DSKD student', 'Accuracy', 'Step (ms)', 'says nothing about noise'):
        assert text in printed
    assert printed.count('started') == 4, 'three trainings and the pictures'
    folder = tmp_path / 'cls'
    pictures = {path.stem for path in folder.glob('*.png')}
    assert pictures == {'accuracy', 'predictions', 'denoising_steps', 'denoising_plane', 'feature_maps'}
    assert all(str(folder / f'{name}.png') in printed for name in pictures)
    assert not (tmp_path / 'data').exists(), 'no scenes are drawn that nobody looks at'


def test_it_is_called_as_a_module_of_its_own():
    command = [sys.executable, '-m', 'examples.digits.demo', '--seeds', '0']
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 2 and 'from 1 on' in result.stderr


@pytest.mark.timeout(900)
def test_detection_and_segmentation_one_after_the_other_and_in_one_table(tmp_path, monkeypatch, say):
    pytest.importorskip('mmdet')
    pytest.importorskip('mmseg')
    monkeypatch.setattr(demo, 'TASKS', {name: demo.TASKS[name] for name in ('det', 'seg')})
    small = ('--seeds', 1, '--epochs', 2, '--scenes', 20, '--work-dir', tmp_path)
    first = say(*small)
    for text in ('Detection', 'mAP', 'Segmentation', 'mIoU', 'Gain', 'Step (ms)'):
        assert text in first
    assert first.count('started') == 9 and first.count('│ DSKD student') == 4, 'a table after each task, and that of all'
    assert first.index('DSKD student  ') < first.index('seg: pictures: started')
    for task in ('det', 'seg'):
        assert {path.stem for path in (tmp_path / task).glob('*.png')} == {'accuracy', 'predictions'}
        assert str(tmp_path / task / 'predictions.png') in first
        assert str(tmp_path / task / 'dskd_seed0/student_last.pth') in first

    # A student whose settings were others is trained again; the rest is kept, the scenes, too.
    (tmp_path / 'seg/plain_seed0/complete.json').write_text(json.dumps(dict(fingerprint='of other settings')))
    monkeypatch.setattr(demo.Command, 'start', lambda self: setattr(self, 'process', SimpleNamespace(poll=lambda: 0)))
    second = say(*small)
    assert second.count('kept') == 6
    assert second.count('started') == 3 and 'seg: Plain student, seed 0: started' in second


@pytest.mark.parametrize('args, words', [(('--task', 'depth'), ('depth', 'cls')), (('--jobs', '0'), ('0', 'from 1 on'))])
def test_wrong_arguments_are_explained(monkeypatch, capsys, args, words):
    monkeypatch.setattr('sys.argv', ['demo.py', *args])
    with pytest.raises(SystemExit) as error:
        demo.parse_args()
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
    monkeypatch.setattr(experiments, 'find_spec', lambda module: None if module in missing else object())
    monkeypatch.setattr('sys.argv', ['demo.py', *(('--task', task) if task else ())])
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
    verdict = demo.verdict
    assert 'gained 3.00 points' in verdict(3.0, 1.0, 5.0, True) and '60% of the gap' in verdict(3.0, 1.0, 5.0, True)
    assert 'gain within noise' in verdict(0.4, 0.9, 5.0, True)
    assert 'gain within noise' in verdict(-0.4, 0.9, 5.0, True)
    assert 'lost 3.00 points' in verdict(-3.0, 1.0, 5.0, True)
    assert 'says nothing' in verdict(9.0, 0.0, 5.0, False)


def test_a_failed_job_shows_its_log(tmp_path):
    log = tmp_path / 'console.log'
    log.write_text('first\n' * 20 + 'KeyError: NoSuchModel\n')
    job = demo.Command('cls: teacher', [], [], log)
    demo.check(job, 0)
    with pytest.raises(SystemExit, match=r'NoSuchModel(.|\n)*cls: teacher failed \(exit status 7\)'):
        demo.check(job, 7)


def test_jobs_wait_for_what_they_need_and_one_that_fails_ends_the_others(tmp_path, monkeypatch):
    ended, running = [], []

    class Process:
        def __init__(self, name: str) -> None:
            self.name, self.polls = name, 0
            running.append(name)

        def poll(self) -> int | None:
            self.polls += 1
            if self.polls < 3:
                return None
            running.remove(self.name)
            return int(self.name == 'bad')

        def terminate(self) -> None:
            running.remove(self.name)

    def make(name: str, *needs: demo.Command) -> demo.Command:
        return demo.Command(name, [name], needs, tmp_path / name)

    monkeypatch.setattr(demo, 'start', lambda command, log: Process(command[-1]))
    monkeypatch.setattr(demo.time, 'sleep', lambda seconds: None)
    console = demo.Console(file=io.StringIO())
    teacher, plain = make('teacher'), make('plain')
    jobs = [teacher, make('student', teacher), plain, make('last', plain)]
    demo.work(jobs, 2, demo.Board(jobs, console), lambda job: ended.append(job.name))
    assert ended == ['teacher', 'plain', 'student', 'last'] and not running
    jobs = [make('slow'), make('bad')]
    monkeypatch.setattr(Process, 'poll', lambda self: 1 if self.name == 'bad' and not running.remove('bad') else None)
    with pytest.raises(SystemExit, match='bad failed'):
        demo.work(jobs, 2, demo.Board(jobs, console), lambda job: ended.append(job.name))
    assert not running


def test_a_detector_that_finds_nothing_has_an_accuracy_of_zero(tmp_path):
    log = tmp_path / 'run/20260101_000000/vis_data/scalars.json'
    log.parent.mkdir(parents=True)
    rows = [{'loss': 1.0, 'step': 1}, {'time': 0.1, 'step': 1}, {'coco/bbox_mAP': 0.25, 'time': 0.1, 'step': 2}]
    log.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    run = experiments.Run(experiments.TASKS['det'], 'plain', 0, tmp_path / 'run', {}, epochs=2)
    assert run.curve() == {1: 0.0, 2: 25.0} and run.result == 25.0 and run.progress() == (2, '25.0 %')


@pytest.mark.parametrize('task', ['cls', 'det'])
def test_fingerprint_follows_the_settings_and_the_teacher(tmp_path, task):
    def students(epochs: int | None, scenes: int = 8) -> list[str]:
        settings = DigitScenes(num_train=scenes)
        return [run.fingerprint for run in experiments.make_runs(task, tmp_path, 2, epochs, settings)]

    assert students(3) == students(3)
    assert len(set(students(3))) == 5, 'every run has its own'
    assert not set(students(3)) & set(students(4))
    assert bool(set(students(3)) & set(students(3, scenes=9))) == (task == 'cls')


@pytest.mark.parametrize('task', HOSTS)
def test_the_student_is_smaller_and_distilled_as_it_is(task):
    pytest.importorskip(HOSTS[task])
    runs = [experiments.Run(experiments.TASKS[task], role, 0, Path('x'), {}) for role in experiments.NAMES]
    models = [MODELS.build(model_config(student_config(run.cfg))) for run in runs]
    sizes = [sum(parameter.numel() for parameter in model.parameters()) for model in models]
    assert sizes[0] > 3 * sizes[1] and sizes[1] == sizes[2]
    # The epochs of the schedule are those of the training, and the student looks for the last checkpoint of the teacher.
    (cosine,) = [
        scheduler
        for scheduler in (runs[0].cfg.param_scheduler if task != 'cls' else [runs[0].cfg.param_scheduler])
        if scheduler.type == 'CosineAnnealingLR'
    ]
    assert cosine.T_max == cosine.end == runs[0].total
    assert Path(runs[2].cfg.model.teacher.checkpoint).name == runs[0].checkpoint.name
