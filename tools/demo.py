"""Distil a small student and show what it gained.

Trains a teacher, plain students and DSKD students of the same budget through tools/train.py, prints their accuracies and draws
pictures. Complete runs are kept: after an interruption, or an edit of one config, only what is missing is trained.
"""

import argparse
import contextlib
import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from statistics import mean, median, stdev

import torch
from matplotlib.figure import Figure
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, init_default_scope
from mmengine.runner import Runner, load_state_dict
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

import dskd_mm
from dskd_mm import visualization
from dskd_mm.distillers import DSKDDistiller
from dskd_mm.utils.checkpoint import load_checkpoint_file

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ('torch', 'onedl-mmengine', 'mmengine', 'onedl-mmpretrain', 'mmpretrain', 'scikit-learn')


@dataclass(frozen=True)
class Task:
    """What a demo of one task consists of.

    Attributes:
        title (str): What is learned.
        configs (dict[str, str]): Config of each role: 'teacher', 'plain' and 'dskd'.
        metric (str): Name of the metric in the logs, in percent.
        modules (tuple[str, ...]): Modules that must be installed.
        install (str): How to install them.
    """

    title: str
    configs: dict[str, str]
    metric: str
    modules: tuple[str, ...]
    install: str


TASKS = {
    'cls': Task(
        title='handwritten digits: 898 for training, 899 by others for testing',
        configs={role: f'configs/demo/cls_{role}.py' for role in ('teacher', 'plain', 'dskd')},
        metric='accuracy/top1',
        modules=('mmpretrain', 'sklearn'),
        install="make env, or pip install -e '.[cls,demo]'",
    ),
}
NAMES = dict(teacher='Teacher', plain='Plain student', dskd='DSKD student')


class Run:
    """One training run, a subprocess.

    Args:
        role (str): 'teacher', 'plain' or 'dskd'.
        seed (int): Seed of the run.
        config (Path): Its config.
        work_dir (Path): Its folder.
        options (dict): Settings of the config to override.
        teacher (Run, optional): The run that must be complete before. Defaults to None.
    """

    def __init__(self, role: str, seed: int, config: Path, work_dir: Path, options: dict, teacher: 'Run | None' = None) -> None:
        self.role = role
        self.name = NAMES[role] if role == 'teacher' else f'{NAMES[role]}, seed {seed}'
        self.config = config
        self.work_dir = work_dir
        self.teacher = teacher
        self.options = {'randomness.seed': seed, **options}
        self.cfg = Config.fromfile(config)
        self.cfg.merge_from_dict(dict(self.options))
        self.epochs = self.cfg.train_cfg.max_epochs
        self.process: subprocess.Popen | None = None
        self._started_as = ''

    @property
    def checkpoint(self) -> Path:
        """Checkpoint of the last epoch."""
        return self.work_dir / f'epoch_{self.epochs}.pth'

    @property
    def log(self) -> Path:
        """What the subprocess printed."""
        return self.work_dir / 'console.log'

    @property
    def marker(self) -> Path:
        """The file that says which run is complete here."""
        return self.work_dir / 'complete.json'

    def fingerprint(self) -> str:
        """Changes with whatever changes the result: settings, the teacher's, versions, our own code."""
        digest = hashlib.sha256(self.cfg.pretty_text.encode())
        if self.teacher is not None:
            digest.update(self.teacher.fingerprint().encode())
        digest.update(repr(sorted(installed_versions())).encode())
        package = Path(dskd_mm.__file__).parent
        for path in sorted(package.rglob('*.py')):
            if not {'visualization', 'testing', '.mim'} & set(path.relative_to(package).parts):
                digest.update(path.read_bytes())
        return digest.hexdigest()

    def is_complete(self) -> bool:
        """Whether the same run, to the end, lies in the folder."""
        if not (self.marker.is_file() and self.checkpoint.is_file()):
            return False
        return json.loads(self.marker.read_text(encoding='utf-8')).get('fingerprint') == self.fingerprint()

    def start(self) -> None:
        """Start from scratch; a run takes less than a minute, so there is nothing worth resuming."""
        shutil.rmtree(self.work_dir, ignore_errors=True)
        self.work_dir.mkdir(parents=True)
        self._started_as = self.fingerprint()
        options = [f'{key}={value}' for key, value in self.options.items()]
        command = [sys.executable, 'tools/train.py', str(self.config), '--work-dir', str(self.work_dir)]
        # One thread each: two runs at once make better use of two cores than two threads of one.
        environment = dict(os.environ, OMP_NUM_THREADS='1', MKL_NUM_THREADS='1')
        with self.log.open('w', encoding='utf-8') as log:
            self.process = subprocess.Popen(
                [*command, '--cfg-options', *options], cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT
            )

    def finish(self) -> None:
        """Mark as complete.

        Raises:
            SystemExit: If the run failed.
        """
        assert self.process is not None
        if self.process.returncode:
            tail = '\n'.join(self.log.read_text(encoding='utf-8', errors='replace').splitlines()[-15:])
            raise SystemExit(f'{tail}\n\n{self.name} failed (exit status {self.process.returncode}); its whole log: {self.log}')
        self.marker.write_text(json.dumps(dict(fingerprint=self._started_as)), encoding='utf-8')

    def curve(self, metric: str) -> list[float]:
        """The metric after each epoch."""
        return [row[metric] for row in visualization.read_scalars(self.work_dir) if metric in row]

    def milliseconds(self) -> float:
        """Median time of a training step."""
        rows = visualization.read_scalars(self.work_dir)
        times = [row['time'] for row in rows if 'loss' in row]
        # The first epoch holds what happens once: loading the teacher, filling caches.
        return 1000 * median(times[len(times) // self.epochs :] or times)


def installed_versions() -> Iterator[tuple[str, str]]:
    """Versions of what a result depends on."""
    for package in PACKAGES:
        try:
            yield package, version(package)
        except PackageNotFoundError:
            continue


def make_runs(task_name: str, task: Task, folder: Path, seeds: int, epochs: int | None) -> list[Run]:
    """One teacher, and of each student as many runs as there are seeds; the teacher first."""
    options: dict = {}
    if epochs is not None:
        options = {'train_cfg.max_epochs': epochs, 'param_scheduler.T_max': epochs, 'param_scheduler.end': epochs}
    configs = {role: ROOT / path for role, path in task.configs.items()}
    teacher = Run('teacher', 0, configs['teacher'], folder / 'teacher', options)
    runs = [teacher]
    for seed in range(seeds):
        runs.append(Run('plain', seed, configs['plain'], folder / f'plain_seed{seed}', options))
    for seed in range(seeds):
        distilled = {**options, 'model.teacher.checkpoint': str(teacher.checkpoint)}
        runs.append(Run('dskd', seed, configs['dskd'], folder / f'dskd_seed{seed}', distilled, teacher))
    return runs


def train(runs: Sequence[Run], metric: str, jobs: int, console: Console) -> None:
    """Train what is not complete, so many runs at once, and show their progress."""
    progress = Progress(
        TextColumn('{task.description:<22}'),
        BarColumn(bar_width=30),
        TextColumn('epoch {task.completed:>2}/{task.total}'),
        TextColumn('{task.fields[note]:<18}'),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    waiting: list[Run] = []
    running: list[Run] = []
    bars: dict[Run, TaskID] = {}
    for run in runs:
        bars[run] = progress.add_task(run.name, start=False, total=run.epochs, note='')
        if run.is_complete():
            report(run, metric, progress, bars[run], 'kept')
        else:
            waiting.append(run)
    with progress:
        try:
            while waiting or running:
                for run in [run for run in waiting if run.teacher not in (*waiting, *running)][: jobs - len(running)]:
                    waiting.remove(run)
                    running.append(run)
                    run.start()
                    progress.start_task(bars[run])
                    if not console.is_terminal:
                        console.print(f'{run.name}: started')
                time.sleep(0.3)
                for run in list(running):
                    assert run.process is not None
                    curve = run.curve(metric)
                    progress.update(bars[run], completed=len(curve), note=f'{curve[-1]:.1f} %' if curve else 'starting')
                    if run.process.poll() is not None:
                        running.remove(run)
                        run.finish()
                        report(run, metric, progress, bars[run], 'done')
        finally:
            for run in running:
                assert run.process is not None
                run.process.terminate()


def report(run: Run, metric: str, progress: Progress, bar: TaskID, state: str) -> None:
    """Show a complete run: as a full bar, or as a line where bars cannot move."""
    accuracy = f'{run.curve(metric)[-1]:.1f} %'
    progress.update(bar, completed=run.epochs, note=f'{accuracy}, {state}')
    progress.stop_task(bar)
    if not progress.console.is_terminal:
        progress.console.print(f'{run.name}: {state}, {accuracy}')


def build_distiller(run: Run) -> DSKDDistiller:
    """Build the distiller of a run, on the CPU."""
    init_default_scope(run.cfg.default_scope)
    model = run.cfg.model.to_dict()
    return MODELS.build(dict(model, data_preprocessor=run.cfg.data_preprocessor))


def count_parameters(run: Run) -> int:
    """Parameters of a plain run's model."""
    init_default_scope(run.cfg.default_scope)
    return sum(parameter.numel() for parameter in MODELS.build(run.cfg.model).parameters())


def summary(runs: Sequence[Run], metric: str) -> tuple[Table, str]:
    """The table of results and what to make of it."""
    sizes = {run.role: count_parameters(run) for run in runs if run.role != 'dskd'}
    sizes['dskd'] = sizes['plain']  # what it was distilled with is not in the student
    table = Table(title='On the test images after the last epoch (mean ± standard deviation)')
    table.add_column('Model', no_wrap=True)
    for column in ('Runs', 'Accuracy (%)', 'Gain', 'Parameters', 'Step (ms)'):
        table.add_column(column, justify='right')
    results = {role: [run.curve(metric)[-1] for run in runs if run.role == role] for role in NAMES}
    gain = mean(results['dskd']) - mean(results['plain'])
    deviation = (spread(results['dskd']) ** 2 + spread(results['plain']) ** 2) ** 0.5
    for role, values in results.items():
        several = len(values) > 1
        table.add_row(
            NAMES[role],
            str(len(values)),
            f'{mean(values):.2f}' + (f' ± {spread(values):.2f}' if several else ''),
            '' if role != 'dskd' else f'{gain:+.2f}' + (f' ± {deviation:.2f}' if several else ''),
            f'{sizes[role]:,}',
            f'{mean(run.milliseconds() for run in runs if run.role == role):.1f}',
        )
    gap = mean(results['teacher']) - mean(results['plain'])
    return table, verdict(gain, deviation, gap, len(results['dskd']))


def spread(values: Sequence[float]) -> float:
    """Standard deviation, 0 of a single value."""
    return stdev(values) if len(values) > 1 else 0.0


def verdict(gain: float, deviation: float, gap: float, seeds: int) -> str:
    """Put the gain in words that it supports.

    Args:
        gain (float): Mean accuracy of the distilled students over that of the plain ones, in points.
        deviation (float): Standard deviation of that difference between two single runs.
        gap (float): The teacher's lead over the plain student, in points.
        seeds (int): Number of runs of each student.
    """
    if seeds == 1:
        return f'Gain of DSKD: {gain:+.2f} points. One run each says nothing about noise: take more seeds.'
    if abs(gain) < deviation:
        return f'Gain of DSKD: {gain:+.2f} points, gain within noise (standard deviation {deviation:.2f}): no conclusion.'
    if gain < 0:
        return f'DSKD lost {-gain:.2f} points (standard deviation {deviation:.2f}): the plain students are better here.'
    share = f', {gain / gap:.0%} of the gap of {gap:.2f} to the teacher' if gap > 0 else ''
    return f'DSKD gained {gain:.2f} points (standard deviation {deviation:.2f}){share}.'


def draw(runs: Sequence[Run], metric: str, distiller: DSKDDistiller, folder: Path) -> list[Path]:
    """Draw all pictures.

    Returns:
        list[Path]: Where they lie.
    """
    by_role = {role: [run for run in runs if run.role == role] for role in NAMES}
    teacher, distilled = by_role['teacher'][0], by_role['dskd'][0]
    loader = Runner.build_dataloader(distilled.cfg.test_dataloader, seed=0)
    batch = next(iter(loader))
    checkpoints = sorted(distilled.work_dir.glob('epoch_*.pth'), key=epoch_of)
    trajectories = {}
    # Early, when the student is weak, and at the end; the same one in a run of one epoch.
    for checkpoint in dict.fromkeys((checkpoints[0], checkpoints[-1])):
        load_state_dict(distiller, load_checkpoint_file(str(checkpoint))['state_dict'], strict=True)
        data = distiller.data_preprocessor(batch, False)
        trajectory = visualization.denoising_trajectory(distiller, data['inputs'], data['data_samples'])
        trajectories[f'epoch {epoch_of(checkpoint)}'] = trajectory
    figures: dict[str, Figure] = {
        'accuracy': visualization.accuracy_curves(
            {NAMES[role]: [run.curve(metric) for run in by_role[role]] for role in ('plain', 'dskd')},
            reference=('Teacher, last epoch', teacher.curve(metric)[-1]),
            title='Accuracy on the test images during training',
        ),
        'denoising_steps': visualization.plot_denoising_steps(trajectories),
        'denoising_plane': visualization.plot_denoising_plane(trajectories),
        'feature_maps': visualization.plot_feature_maps(trajectory, torch.stack(list(batch['inputs']))),
    }
    paths = []
    for name, figure in figures.items():
        paths.append(folder / f'{name}.png')
        figure.savefig(paths[-1])
    return paths


def epoch_of(checkpoint: Path) -> int:
    """The epoch in a checkpoint's name."""
    return int(checkpoint.stem.removeprefix('epoch_'))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--task', choices=list(TASKS), default='cls', help='what to distil; default: cls, classification')
    parser.add_argument('--seeds', type=int, default=3, help='runs of each student; default: 3')
    parser.add_argument('--epochs', type=int, help="length of every run; default: the configs' own")
    parser.add_argument('--jobs', type=int, default=2, help='runs at once, of one thread each; default: 2')
    parser.add_argument('--work-dir', type=Path, default=ROOT / 'work_dirs/demo', help='default: work_dirs/demo')
    parser.add_argument('--fresh', action='store_true', help='train again what is complete')
    args = parser.parse_args()
    for name in ('seeds', 'epochs', 'jobs'):
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f'--{name} expects a number from 1 on, but got {value}.')
    missing = [module for module in TASKS[args.task].modules if find_spec(module) is None]
    if missing:
        parser.error(f'the demo {args.task!r} needs {", ".join(missing)}: {TASKS[args.task].install}')
    return args


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.jobs)
    MMLogger.get_instance('demo', log_level='WARNING')  # the runs have logs of their own
    task, console, begin = TASKS[args.task], Console(), time.perf_counter()
    folder = args.work_dir.resolve() / args.task
    if args.fresh:
        shutil.rmtree(folder, ignore_errors=True)
    console.print(f'[bold]DSKD on {task.title}[/bold]\nlogs and checkpoints: {folder}', highlight=False)
    runs = make_runs(args.task, task, folder, args.seeds, args.epochs)
    train(runs, task.metric, args.jobs, console)
    console.print('Drawing pictures ...')
    with contextlib.redirect_stdout(io.StringIO()):  # the host's remarks on being imported
        distiller = build_distiller(runs[-1])
        pictures = draw(runs, task.metric, distiller, folder)
    table, text = summary(runs, task.metric)
    console.print(table)
    console.print(text, style='bold', highlight=False)
    console.print('\nPictures:', *(f'  {path}' for path in pictures), sep='\n', highlight=False, soft_wrap=True)
    exported = runs[-1].work_dir / 'student_last.pth'
    if exported.is_file():
        console.print(f'Plain student of the last run, for the host alone:\n  {exported}', highlight=False, soft_wrap=True)
    console.print(f'{time.perf_counter() - begin:.0f} s in total.', highlight=False)


if __name__ == '__main__':
    main()
