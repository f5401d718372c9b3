"""Distil small students and show what they gained: a classifier, a detector and a segmenter.

For each task it trains a teacher, plain students and DSKD students of the same budget through tools/train.py, prints their
results and draws pictures. Complete runs are kept: after an interruption, or an edit of one config, only what is missing is
trained.
"""

import argparse
import contextlib
import copy
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
from mmengine.model import BaseModel
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner, load_state_dict
from mmengine.structures import InstanceData
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

import dskd_mm
from dskd_mm import visualization
from dskd_mm.datasets.digit_scenes import DigitScenes, write_digit_scenes
from dskd_mm.distillers import DSKDDistiller
from dskd_mm.utils.checkpoint import load_checkpoint_file
from dskd_mm.utils.config import model_config, student_config

ROOT = Path(__file__).resolve().parents[1]
HOSTS = ('mmengine', 'mmcv', 'mmpretrain', 'mmdet', 'mmdetection', 'mmsegmentation')
PACKAGES = ('torch', 'scikit-learn', *HOSTS, *(f'onedl-{name}' for name in HOSTS))


@dataclass(frozen=True)
class Task:
    """What a demo of one task consists of.

    Attributes:
        title (str): What the task is called.
        data (str): What is learned.
        metric (str): What the metric is called.
        key (str): Its name in the logs.
        unit (float): What the logs' values are multiplied with to be in percent.
        modules (tuple[str, ...]): Modules that must be installed.
        extra (str): The extra of setup.py that installs them.
        seeds (int): Runs of each student, unless told otherwise.
        uses_scenes (bool): Whether it is trained on scenes, which have to be written first.
    """

    title: str
    data: str
    metric: str
    key: str
    unit: float
    modules: tuple[str, ...]
    extra: str
    seeds: int
    uses_scenes: bool

    def missing(self) -> list[str]:
        """Modules that are not installed."""
        return [module for module in self.modules if find_spec(module) is None]


TASKS = {
    'cls': Task(
        title='Classification',
        data='handwritten digits, 898 for training, 899 by others for testing',
        metric='Accuracy',
        key='accuracy/top1',
        unit=1,
        modules=('mmpretrain', 'sklearn'),
        extra='cls',
        seeds=3,
        uses_scenes=False,
    ),
    'det': Task(
        title='Detection',
        data='boxes of the digits in cluttered scenes',
        metric='mAP',
        key='coco/bbox_mAP',
        unit=100,
        modules=('mmdet', 'sklearn'),
        extra='det',
        seeds=2,
        uses_scenes=True,
    ),
    'seg': Task(
        title='Segmentation',
        data='pixels of the digits in the same scenes',
        metric='mIoU',
        key='mIoU',
        unit=1,
        modules=('mmseg', 'sklearn'),
        extra='seg',
        seeds=2,
        uses_scenes=True,
    ),
}
NAMES = dict(teacher='Teacher', plain='Plain student', dskd='DSKD student')


class Run:
    """One training run, a subprocess.

    Args:
        task (str): 'cls', 'det' or 'seg'.
        role (str): 'teacher', 'plain' or 'dskd'.
        seed (int): Seed of the run.
        work_dir (Path): Its folder.
        options (dict): Settings of the config to override.
        epochs (int, optional): Its length. None takes the config's own. Defaults to None.
        teacher (Run, optional): The run that must be complete before. Defaults to None.
        data (str): Description of generated data, as far as the config does not say it. Defaults to ''.
    """

    def __init__(
        self,
        task: str,
        role: str,
        seed: int,
        work_dir: Path,
        options: dict,
        epochs: int | None = None,
        teacher: 'Run | None' = None,
        data: str = '',
    ) -> None:
        self.task = TASKS[task]
        self.role = role
        self.name = f'{task}: {NAMES[role]}' if role == 'teacher' else f'{task}: {NAMES[role]}, seed {seed}'
        self.config = ROOT / f'configs/demo/{task}_{role}.py'
        self.work_dir = work_dir
        self.teacher = teacher
        self.data = data
        self.cfg = Config.fromfile(self.config)
        self.options = {'randomness.seed': seed, **options, **(length_options(self.cfg, epochs) if epochs else {})}
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
        # Not as the config's own text: laying that out takes a second.
        digest = hashlib.sha256(json.dumps(self.cfg.to_dict(), default=repr).encode())
        digest.update(self.data.encode())
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

    def curve(self) -> list[float]:
        """The task's metric after each epoch, in percent."""
        evaluations = [row for row in visualization.read_scalars(self.work_dir) if 'loss' not in row]
        # A detector that finds nothing at all, in its first steps, gets no mAP.
        return [self.task.unit * row.get(self.task.key, 0.0) for row in evaluations]

    @property
    def result(self) -> float:
        """The task's metric after the last epoch, in percent."""
        return self.curve()[-1]

    def milliseconds(self) -> float:
        """Median time of a training step."""
        rows = visualization.read_scalars(self.work_dir)
        times = [row['time'] for row in rows if 'loss' in row]
        # The first epoch holds what happens once: loading the teacher, filling caches.
        return 1000 * median(times[len(times) // self.epochs :] or times)


def length_options(cfg: Config, epochs: int) -> dict:
    """Settings that make a training so many epochs long, its schedule with it."""
    options = {'train_cfg.max_epochs': epochs}
    schedulers = cfg.param_scheduler if isinstance(cfg.param_scheduler, list) else [cfg.param_scheduler]
    for index, scheduler in enumerate(schedulers):
        if 'T_max' in scheduler:
            path = f'param_scheduler.{index}' if isinstance(cfg.param_scheduler, list) else 'param_scheduler'
            options.update({f'{path}.T_max': epochs, f'{path}.end': epochs})
    return options


def installed_versions() -> Iterator[tuple[str, str]]:
    """Versions of what a result depends on."""
    for package in PACKAGES:
        try:
            yield package, version(package)
        except PackageNotFoundError:
            continue


def make_runs(task: str, work_dir: Path, seeds: int, epochs: int | None, scenes: DigitScenes | None = None) -> list[Run]:
    """One teacher, and of each student as many runs as there are seeds; the teacher first."""
    options: dict = {}
    data = ''
    if TASKS[task].uses_scenes:
        folder, data = scenes_folder(work_dir), repr(scenes)
        options.update({f'{part}_dataloader.dataset.data_root': str(folder) for part in ('train', 'val', 'test')})
    folder = work_dir / task
    teacher = Run(task, 'teacher', 0, folder / 'teacher', options, epochs, data=data)
    runs = [teacher]
    for seed in range(seeds):
        runs.append(Run(task, 'plain', seed, folder / f'plain_seed{seed}', options, epochs, data=data))
    for seed in range(seeds):
        distilled = {**options, 'model.teacher.checkpoint': str(teacher.checkpoint)}
        runs.append(Run(task, 'dskd', seed, folder / f'dskd_seed{seed}', distilled, epochs, teacher, data))
    return runs


def scenes_folder(work_dir: Path) -> Path:
    """Where the scenes lie that detection and segmentation are trained on."""
    return work_dir / 'data/digit_scenes'


def train(runs: Sequence[Run], jobs: int, console: Console) -> None:
    """Train what is not complete, so many runs at once, and show their progress."""
    progress = Progress(
        TextColumn('{task.description:<27}'),
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
            report(run, progress, bars[run], 'kept')
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
                    curve = run.curve()
                    progress.update(bars[run], completed=len(curve), note=f'{curve[-1]:.1f} %' if curve else 'starting')
                    if run.process.poll() is not None:
                        running.remove(run)
                        run.finish()
                        report(run, progress, bars[run], 'done')
        finally:
            for run in running:
                assert run.process is not None
                run.process.terminate()


def report(run: Run, progress: Progress, bar: TaskID, state: str) -> None:
    """Show a complete run: as a full bar, or as a line where bars cannot move."""
    result = f'{run.result:.1f} %'
    progress.update(bar, completed=run.epochs, note=f'{result}, {state}')
    progress.stop_task(bar)
    if not progress.console.is_terminal:
        progress.console.print(f'{run.name}: {state}, {result}')


def build_distiller(run: Run) -> DSKDDistiller:
    """Build the distiller of a run, on the CPU."""
    return MODELS.build(model_config(run.cfg))


def build_student(run: Run) -> BaseModel:
    """Build the plain model of a run, with or without a distiller around it; without weights."""
    return MODELS.build(model_config(student_config(run.cfg)))


def summary(runs: Sequence[Run]) -> tuple[Table, list[str]]:
    """The table of results, and for each task what to make of it."""
    table = Table(title='On the test images after the last epoch (mean ± standard deviation)')
    table.add_column('Model', no_wrap=True)
    for column in ('Runs', 'Result (%)', 'Gain', 'Weights', 'Step (ms)'):
        table.add_column(column, justify='right', no_wrap=True)
    texts = []
    for task in dict.fromkeys(run.task for run in runs):
        own = [run for run in runs if run.task is task]
        table.add_section()
        table.add_row(task.title, '', task.metric, style='bold')
        results = {role: [run.result for run in own if run.role == role] for role in NAMES}
        gain = mean(results['dskd']) - mean(results['plain'])
        deviation = (spread(results['dskd']) ** 2 + spread(results['plain']) ** 2) ** 0.5
        for role, values in results.items():
            of_role = [run for run in own if run.role == role]
            several = len(values) > 1
            table.add_row(
                NAMES[role],
                str(len(values)),
                f'{mean(values):.2f}' + (f' ± {spread(values):.2f}' if several else ''),
                '' if role != 'dskd' else f'{gain:+.2f}' + (f' ± {deviation:.2f}' if several else ''),
                # Of the plain model: what it was distilled with is not in the student.
                f'{sum(parameter.numel() for parameter in build_student(of_role[0]).parameters()):,}',
                f'{mean(run.milliseconds() for run in of_role):.1f}',
            )
        gap = mean(results['teacher']) - mean(results['plain'])
        texts.append(f'{task.title}: {verdict(gain, deviation, gap, len(results["dskd"]))}')
    return table, texts


def spread(values: Sequence[float]) -> float:
    """Standard deviation, 0 of a single value."""
    return stdev(values) if len(values) > 1 else 0.0


def verdict(gain: float, deviation: float, gap: float, seeds: int) -> str:
    """Put the gain in words that it supports.

    Args:
        gain (float): Mean result of the distilled students over that of the plain ones, in points.
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


def draw(runs: Sequence[Run]) -> list[Path]:
    """Draw all pictures of one task.

    Returns:
        list[Path]: Where they lie.
    """
    by_role = {role: [run for run in runs if run.role == role] for role in NAMES}
    teacher, task = by_role['teacher'][0], runs[0].task
    figures: dict[str, Figure] = {
        'accuracy': visualization.accuracy_curves(
            {NAMES[role]: [run.curve() for run in by_role[role]] for role in ('plain', 'dskd')},
            reference=('Teacher, last epoch', teacher.result),
            title=f'{task.metric} on the test images during training',
            ylabel=f'{task.metric} (%)',
        ),
    }
    # Data sets and their pipelines are looked up in the host.
    with DefaultScope.overwrite_default_scope(teacher.cfg.default_scope):
        if task.uses_scenes:
            figures['predictions'] = draw_predictions([by_role['plain'][0], by_role['dskd'][0], teacher])
        else:
            figures.update(draw_denoising(by_role['dskd'][0]))
    paths = []
    for name, figure in figures.items():
        paths.append(teacher.work_dir.parent / f'{name}.png')
        figure.savefig(paths[-1])
    return paths


def draw_denoising(distilled: Run) -> dict[str, Figure]:
    """Draw what denoising does to the features of a classifier, by the pictures' names."""
    distiller = build_distiller(distilled)
    batch = next(iter(Runner.build_dataloader(distilled.cfg.test_dataloader, seed=0)))
    checkpoints = sorted(distilled.work_dir.glob('epoch_*.pth'), key=epoch_of)
    trajectories = {}
    # Early, when the student is weak, and at the end; the same one in a run of one epoch.
    for checkpoint in dict.fromkeys((checkpoints[0], checkpoints[-1])):
        load_state_dict(distiller, load_checkpoint_file(str(checkpoint))['state_dict'], strict=True)
        data = distiller.data_preprocessor(batch, False)
        trajectory = visualization.denoising_trajectory(distiller, data['inputs'], data['data_samples'])
        trajectories[f'epoch {epoch_of(checkpoint)}'] = trajectory
    return {
        'denoising_steps': visualization.plot_denoising_steps(trajectories),
        'denoising_plane': visualization.plot_denoising_plane(trajectories),
        'feature_maps': visualization.plot_feature_maps(trajectory, torch.stack(list(batch['inputs']))),
    }


def draw_predictions(runs: Sequence[Run], count: int = 4) -> Figure:
    """Draw what detectors or segmenters predict on the first test images, beside the truth."""
    # One way of loading for all of them: the test images of the first.
    dataloader = dict(runs[0].cfg.test_dataloader, batch_size=count)
    loader = Runner.build_dataloader(dataloader, seed=0)
    batch, meta = next(iter(loader)), loader.dataset.metainfo
    images = [image.numpy().transpose(1, 2, 0)[..., ::-1] for image in batch['inputs']]
    truth = [sample.clone() for sample in batch['data_samples']]
    samples = {NAMES[run.role]: predict(run, batch) for run in runs}
    if 'gt_sem_seg' in truth[0]:
        return visualization.plot_segmentations(
            images,
            [sample.gt_sem_seg.data[0].numpy() for sample in truth],
            {name: [sample.pred_sem_seg.data[0].numpy() for sample in own] for name, own in samples.items()},
            meta['classes'],
            meta['palette'],
        )
    return visualization.plot_detections(
        images,
        [as_boxes(sample.gt_instances) for sample in truth],
        {name: [as_boxes(sample.pred_instances) for sample in own] for name, own in samples.items()},
        meta['classes'],
    )


@torch.no_grad()
def predict(run: Run, batch: dict) -> list:
    """Predict with the plain model that a run has trained."""
    student = build_student(run)
    exported = run.work_dir / 'student_last.pth'
    checkpoint = exported if exported.is_file() else run.checkpoint
    load_state_dict(student, load_checkpoint_file(str(checkpoint))['state_dict'], strict=True)
    # Predictions are written into the samples, which the next model gets, too.
    return student.eval().test_step(copy.deepcopy(batch))


def as_boxes(instances: InstanceData) -> visualization.Boxes:
    """Boxes of mmdet as arrays."""
    scores = instances.scores.numpy() if 'scores' in instances else None
    boxes = instances.bboxes
    # Annotated boxes are of a class of mmdet's.
    return visualization.Boxes(getattr(boxes, 'tensor', boxes).numpy(), instances.labels.numpy(), scores)


def epoch_of(checkpoint: Path) -> int:
    """The epoch in a checkpoint's name."""
    return int(checkpoint.stem.removeprefix('epoch_'))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--task', choices=list(TASKS), help='what to distil; default: all')
    own = ', '.join(f'{name} {task.seeds}' for name, task in TASKS.items())
    parser.add_argument('--seeds', type=int, help=f'runs of each student; default: {own}')
    parser.add_argument('--epochs', type=int, help="length of every run; default: the configs' own")
    parser.add_argument('--scenes', type=int, default=600, help='training images of det and seg; default: 600')
    parser.add_argument('--jobs', type=int, default=2, help='runs at once, of one thread each; default: 2')
    parser.add_argument('--work-dir', type=Path, default=ROOT / 'work_dirs/demo', help='default: work_dirs/demo')
    parser.add_argument('--fresh', action='store_true', help='train again what is complete')
    args = parser.parse_args()
    for name in ('seeds', 'epochs', 'scenes', 'jobs'):
        value = getattr(args, name)
        if value is not None and value < 1:
            parser.error(f'--{name} expects a number from 1 on, but got {value}.')
    args.tasks = [args.task] if args.task else [name for name, task in TASKS.items() if not task.missing()]
    args.left_out = []
    for name, task in TASKS.items():
        if task.missing() and args.task in (None, name):
            mend = f"make env, or pip install -e '.[{task.extra},demo]'"
            args.left_out.append(f'{task.title} is left out, for want of {", ".join(task.missing())}: {mend}')
    if args.left_out and (args.task or not args.tasks):
        parser.error('\n'.join(args.left_out))
    return args


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.jobs)
    MMLogger.get_instance('demo', log_level='WARNING')  # the runs have logs of their own
    console, begin = Console(), time.perf_counter()
    work_dir = args.work_dir.resolve()
    console.print('[bold]DSKD[/bold]', highlight=False)
    for name in args.tasks:
        console.print(f'  {name}: {TASKS[name].title.lower()}, {TASKS[name].data}', highlight=False, soft_wrap=True)
    for sentence in args.left_out:
        console.print(sentence, highlight=False, markup=False, soft_wrap=True)
    console.print(f'logs and checkpoints: {work_dir}', highlight=False, soft_wrap=True)
    scenes = DigitScenes(num_train=args.scenes, num_test=-(-args.scenes // 4))
    if any(TASKS[name].uses_scenes for name in args.tasks):
        write_digit_scenes(scenes_folder(work_dir), scenes)
    tasks = {name: make_runs(name, work_dir, args.seeds or TASKS[name].seeds, args.epochs, scenes) for name in args.tasks}
    runs = [run for own in tasks.values() for run in own]
    if args.fresh:
        for run in runs:
            shutil.rmtree(run.work_dir, ignore_errors=True)
    train(runs, args.jobs, console)
    console.print('Drawing pictures ...')
    with contextlib.redirect_stdout(io.StringIO()):  # the hosts' remarks on being imported
        pictures = [path for own in tasks.values() for path in draw(own)]
        table, texts = summary(runs)
    console.print(table)
    for text in texts:
        console.print(text, style='bold', highlight=False)
    console.print('\nPictures:', *(f'  {path}' for path in pictures), sep='\n', highlight=False, soft_wrap=True)
    exported = [path for own in tasks.values() if (path := own[-1].work_dir / 'student_last.pth').is_file()]
    if exported:
        console.print('Plain students of the last runs, for the hosts alone:', highlight=False)
        console.print(*(f'  {path}' for path in exported), sep='\n', highlight=False, soft_wrap=True)
    console.print(f'{time.perf_counter() - begin:.0f} s in total.', highlight=False)


if __name__ == '__main__':
    main()
