"""The trainings of the demo: for each task a teacher, plain students and DSKD students of the same budget."""

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from subprocess import Popen
from typing import Protocol

import dskd_mm
from benchmarks.records import versions
from benchmarks.runner import Training
from dskd_mm.report import read_scalars
from dskd_mm.utils.checkpoint import load_checkpoint_file
from examples.digits.scenes import DigitScenes

CONFIGS = 'examples/digits/configs'
NAMES = dict(teacher='Teacher', plain='Plain student', dskd='DSKD student')
BUFFERS = ('running_mean', 'running_var', 'num_batches_tracked')


@dataclass(frozen=True)
class Task:
    """What a demo of one task consists of.

    Attributes:
        name (str): 'cls', 'det' or 'seg'.
        title (str): What the task is called.
        data (str): What is learned.
        metric (str): What the metric is called.
        key (str): Its name in the logs.
        unit (float): What the logs' values are multiplied with to be in percent.
        host (str): The library that must be installed, beside scikit-learn.
        uses_scenes (bool): Whether it is trained on scenes, which have to be written first.
    """

    name: str
    title: str
    data: str
    metric: str
    key: str
    unit: float
    host: str
    uses_scenes: bool = True

    def missing(self) -> list[str]:
        """Return the modules that are not installed."""
        return [module for module in (self.host, 'sklearn') if find_spec(module) is None]


DIGITS = 'handwritten digits, 898 for training, 899 by others for testing'
TASKS = {
    task.name: task
    for task in (
        Task('cls', 'Classification', DIGITS, 'Accuracy', 'accuracy/top1', 1, 'mmpretrain', uses_scenes=False),
        Task('det', 'Detection', 'boxes of the digits in cluttered scenes', 'mAP', 'coco/bbox_mAP', 100, 'mmdet'),
        Task('seg', 'Segmentation', 'pixels of the digits in the same scenes', 'mIoU', 'mIoU', 1, 'mmseg'),
    )
}


class Job(Protocol):
    """A process of the demo.

    Attributes:
        name (str): What it is called in messages.
        total (int): Its length.
        needs (list[Job]): What must be complete before.
        log (Path): What it prints.
        process (Popen, optional): It, once it is started.
    """

    name: str
    total: int
    needs: list['Job']
    process: Popen | None

    @property
    def log(self) -> Path: ...

    def is_complete(self) -> bool:
        """Return whether it was done to its end."""

    def start(self) -> None:
        """Start it from scratch."""

    def finish(self) -> None:
        """Mark it as complete."""

    def progress(self) -> tuple[int, str]:
        """Return how far it is and what is known of its result."""


class Run:
    """One training, a job.

    Args:
        task (Task): Its task.
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
        task: Task,
        role: str,
        seed: int,
        work_dir: Path,
        options: dict,
        epochs: int | None = None,
        teacher: 'Run | None' = None,
        data: str = '',
    ) -> None:
        self.task, self.role, self.data = task, role, data
        self.name = f'{task.name}: {NAMES[role]}' + ('' if role == 'teacher' else f', seed {seed}')
        self.teacher = teacher
        self.needs: list[Job] = [teacher] if teacher else []
        options = {'randomness.seed': seed, **options}
        config = f'{CONFIGS}/{task.name}_{role}.py'
        if epochs:
            options.update(length_options(Training(config, work_dir).cfg, epochs))
        self.training = Training(config, work_dir, options)
        self.work_dir, self.cfg = work_dir, self.training.cfg
        self.total = self.cfg.train_cfg.max_epochs
        self.process: Popen | None = None

    @property
    def checkpoint(self) -> Path:
        """Checkpoint of the last epoch."""
        return self.work_dir / f'epoch_{self.total}.pth'

    @property
    def log(self) -> Path:
        """What the training printed."""
        return self.work_dir / 'console.log'

    @property
    def marker(self) -> Path:
        """The file that says which run is complete here."""
        return self.work_dir / 'complete.json'

    @cached_property
    def fingerprint(self) -> str:
        """Changes with whatever changes the result: settings, the teacher's, data, versions, the package's code."""
        teacher = self.teacher.fingerprint if self.teacher else ''
        return self.training.fingerprint(self.data, teacher, repr(sorted(versions().items())), code())

    def is_complete(self) -> bool:
        """Return whether the same run, to the end, lies in the folder."""
        if not (self.marker.is_file() and self.checkpoint.is_file()):
            return False
        return json.loads(self.marker.read_text(encoding='utf-8')).get('fingerprint') == self.fingerprint

    def start(self) -> None:
        """Start from scratch; a run takes about a minute, so there is nothing worth resuming."""
        assert self.fingerprint  # of the code that it starts with: kept
        shutil.rmtree(self.work_dir, ignore_errors=True)
        self.work_dir.mkdir(parents=True)
        with self.log.open('w', encoding='utf-8') as log:
            self.process = self.training.start(log)

    def finish(self) -> None:
        """Mark it as complete."""
        self.marker.write_text(json.dumps(dict(fingerprint=self.fingerprint)), encoding='utf-8')

    def progress(self) -> tuple[int, str]:
        """Return the number of epochs that are evaluated, and the last result."""
        curve = self.curve()
        return (max(curve), f'{curve[max(curve)]:.1f} %') if curve else (0, '')

    def curve(self) -> dict[int, float]:
        """Return the task's metric in percent by epoch, as far as it is evaluated."""
        # A detector that finds nothing at all, in its first steps, gets no mAP.
        return {row['step']: self.task.unit * row.get(self.task.key, 0.0) for row in self.training.evaluations()}

    @property
    def result(self) -> float:
        """The task's metric after the last epoch, in percent."""
        return self.curve()[self.total]

    def milliseconds(self) -> float:
        """Return the median time of a training step."""
        times = [row['time'] for row in read_scalars(self.work_dir) if 'loss' in row]
        # The first epoch holds what happens once: loading the teacher, filling caches.
        return 1000 * median(times[len(times) // self.total :] or times)

    def weights(self) -> int:
        """Return the number of weights of the plain model: what it was distilled with is not in the student."""
        state = load_checkpoint_file(str(self.checkpoint))['state_dict']
        own = [key for key in state if key.startswith('student.') or self.role != 'dskd']
        return sum(state[key].numel() for key in own if not key.endswith(BUFFERS))


def code() -> str:
    """Return a hash of the package's source."""
    package = Path(dskd_mm.__file__).parent
    digest = hashlib.sha256()
    for path in sorted(package.rglob('*.py')):
        if '.mim' not in path.relative_to(package).parts:
            digest.update(path.read_bytes())
    return digest.hexdigest()


def length_options(cfg: dict, epochs: int) -> dict:
    """Return settings that make a training so many epochs long, its schedule with it, and evaluate each."""
    options = {'train_cfg.max_epochs': epochs, 'train_cfg.val_interval': 1, 'default_hooks.checkpoint.interval': epochs}
    schedulers = cfg['param_scheduler']
    for index, scheduler in enumerate(schedulers if isinstance(schedulers, list) else [schedulers]):
        if 'T_max' in scheduler:
            path = f'param_scheduler.{index}' if isinstance(schedulers, list) else 'param_scheduler'
            options.update({f'{path}.T_max': epochs, f'{path}.end': epochs})
    return options


def scenes_folder(work_dir: Path) -> Path:
    """Return where the scenes lie that detection and segmentation are trained on."""
    return work_dir / 'data/digit_scenes'


def make_runs(name: str, work_dir: Path, seeds: int, epochs: int | None, scenes: DigitScenes) -> list[Run]:
    """Return the runs of a task: one teacher first, then of each student as many as there are seeds.

    Args:
        name (str): 'cls', 'det' or 'seg'.
        work_dir (Path): Folder of the demo.
        seeds (int): Runs of each student.
        epochs (int, optional): Length of every run; None takes those of the configs.
        scenes (DigitScenes): Settings of the scenes in ``work_dir``.
    """
    task, options, data = TASKS[name], {}, ''
    if task.uses_scenes:
        folder, data = scenes_folder(work_dir), repr(scenes)
        options = {f'{part}_dataloader.dataset.data_root': str(folder) for part in ('train', 'val', 'test')}
    own = work_dir / name
    teacher = Run(task, 'teacher', 0, own / 'teacher', options, epochs, data=data)
    plain = [Run(task, 'plain', seed, own / f'plain_seed{seed}', options, epochs, data=data) for seed in range(seeds)]
    distilled = {**options, 'model.teacher.checkpoint': str(teacher.checkpoint)}
    dskd = [Run(task, 'dskd', seed, own / f'dskd_seed{seed}', distilled, epochs, teacher, data) for seed in range(seeds)]
    return [teacher, *plain, *dskd]


def of_role(runs: Sequence[Run], role: str) -> list[Run]:
    """Return the runs of a teacher, of plain or of distilled students."""
    return [run for run in runs if run.role == role]


PICTURES = {
    'cls': ('accuracy', 'predictions', 'denoising_steps', 'denoising_plane', 'feature_maps'),
    'det': ('accuracy', 'predictions'),
    'seg': ('accuracy', 'predictions'),
}
"""Names of the files by the task."""


def picture_paths(name: str, work_dir: Path) -> list[Path]:
    """Return where the pictures of a task lie."""
    return [work_dir / name / f'{picture}.png' for picture in PICTURES[name]]
