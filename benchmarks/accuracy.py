"""Train methods x seeds at one budget from one teacher and record their accuracy.

Every run is one ``tools/train.py`` process. What is recorded already is skipped, an interrupted run resumes from its last
checkpoint, and every result is appended to benchmarks/results/accuracy.jsonl as soon as it is there:

    python benchmarks/accuracy.py --suite cls --methods plain,kd,diffkd,dskd --seeds 0,1,2
    python benchmarks/accuracy.py --dataset cifar100-subset --methods dskd,no-lsh --seeds 0 --epochs 12 --holdout

At its end it prints the table of what is recorded of these data sets, and draws it beside their runs;
``benchmarks/report.py`` renews those of the docs. Killed at any point, also by SIGKILL, it may simply be called again: a
training that outlived it is waited for. The teacher is trained first where its checkpoint is missing. To repeat runs that are
recorded, give ``--results`` another file and ``--work-dir`` another folder. It exits with 1 if a run failed.
"""

import argparse
import fcntl
import hashlib
import json
import shlex
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from mmengine.device import get_device

if not __package__:  # called as a script, which sees its own folder only
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.comparison import selected
from benchmarks.records import LOCK, RESULTS, append, commit, origin, precision, records
from benchmarks.report import picture, table
from benchmarks.runner import ROOT, Training, start
from benchmarks.settings import SETTINGS, SUITES, Setting, applicable
from benchmarks.variants import METHODS, VARIANTS, method_of


@dataclass(frozen=True)
class Run:
    """One training of a student.

    Attributes:
        dataset (str): Name of its setting.
        variant (str): The method, or a variant of one.
        seed (int): The seed of everything.
        epochs (int): The budget.
        holdout (bool): Whether it trains on a part of the training images and is judged on another.
        results (Path): File to append its records to.
        folder (Path): Where runs have their folders.
    """

    dataset: str
    variant: str
    seed: int
    epochs: int
    holdout: bool
    results: Path
    folder: Path

    @property
    def setting(self) -> Setting:
        """The data set with its teacher and student."""
        return SETTINGS[self.dataset]

    @property
    def split(self) -> str:
        """The part of the data on which it is judged."""
        return 'holdout' if self.holdout else 'test'

    @property
    def name(self) -> str:
        """What it is called in messages, and its place among the folders."""
        return f'{self.dataset}/{self.split}-{self.epochs}e/{self.variant}-s{self.seed}'

    @property
    def place(self) -> Path:
        """Its folder, from the repository's root."""
        return self.folder / self.name

    @property
    def work_dir(self) -> Path:
        """Its folder, from wherever this is called."""
        return ROOT / self.place

    @property
    def config(self) -> str:
        """Its config."""
        return self.setting.config(self.method)

    @property
    def method(self) -> str:
        """The method of its variant."""
        return method_of(self.variant)

    @property
    def flags(self) -> list[str]:
        """What the tools are told beside the config."""
        return self.setting.flags(self.method)

    @property
    def options(self) -> dict:
        """What is changed of its config."""
        setting, variant = self.setting, VARIANTS.get(self.variant)
        options = {**(variant.options if variant else {}), 'randomness.seed': self.seed}
        options |= dict.fromkeys(setting.schedule, self.epochs)
        options |= {'train_cfg.val_interval': setting.interval, 'default_hooks.checkpoint.interval': setting.interval}
        if setting.own_teacher and self.is_taught:
            options['model.teacher.checkpoint'] = str(setting.teacher_checkpoint)
        return options | setting.options | (setting.holdout if self.holdout else {})

    @property
    def train_images(self) -> int:
        """Size of its training part."""
        return self.setting.holdout_images if self.holdout else self.setting.train_images

    @property
    def training(self) -> Training:
        """The process that it takes."""
        flags = (*self.flags, '--resume', *(('--amp',) if self.setting.amp else ()))
        return Training(self.config, self.place, self.options, flags)

    @property
    def is_taught(self) -> bool:
        """Whether there is a teacher in it: in all but the plain student, the teacher itself included."""
        return self.variant != 'plain'

    @property
    def teacher(self) -> str:
        """By which weights its student is taught, '' if there are none yet: the beginning of their file's SHA-256."""
        checkpoint = ROOT / self.setting.teacher_checkpoint
        return hashlib.sha256(checkpoint.read_bytes()).hexdigest()[:12] if checkpoint.is_file() else ''

    @property
    def key(self) -> dict:
        """What tells its records from others."""
        key = dict(dataset=self.dataset, variant=self.variant, seed=self.seed)
        return key | dict(split=self.split, epochs=self.epochs)

    @property
    def is_recorded(self) -> bool:
        """Whether there is a record of it."""
        return any(self.key.items() <= record.items() for record in records(self.results))

    def finish(self) -> bool:
        """Train, or go on with what was interrupted, and record the result; nothing if it is done.

        Returns:
            bool: Whether it is done now.
        """
        self.work_dir.mkdir(parents=True, exist_ok=True)
        with open(self.work_dir / 'train.log', 'a') as log:
            # The training inherits the lock with its output: if it outlives this script, the next one waits here for its end.
            fcntl.flock(log, fcntl.LOCK_EX)
            if self.is_recorded:  # perhaps by another call, for which this one waited
                return True
            print(f'start {self.name}', flush=True)
            begin = time.time()
            try:
                # Before the run: what is committed meanwhile is not what it ran.
                revision = self.claim(commit())
                code = self.training.start(log).wait()
                if code:
                    raise RuntimeError(f'exit status {code} of the training, see {self.work_dir / "train.log"}')
                seconds = round(time.time() - begin, 1)
                rows = self.record(self.judge(), seconds, revision)
            except Exception as error:  # the other runs go on
                print(f'FAILED {self.name}: {type(error).__name__}: {error}', flush=True)
                return False
        for row in rows:
            print(f'done  {self.name} on {row["split"]}: {row["value"]:.2f} in {seconds} s', flush=True)
        return True

    def claim(self, revision: str) -> str:
        """Mark the folder as that of this run, so that no run of another config is taken for it.

        Args:
            revision (str): The commit that is checked out.

        Returns:
            str: The commit at which the run in the folder began: code may have changed since without any trace in the config.

        Raises:
            RuntimeError: If it holds a run of another config.
        """
        with LOCK:  # configs are parsed, and Python 3.11 confuses how deep two threads are in that
            found = self.training.fingerprint(self.setting.whole_config(self.method).to_dict())
        mark = self.work_dir / 'config.sha256'
        known, _, begun = (mark.read_text() if mark.exists() else '').partition(' ')
        if known != found and (known or (self.work_dir / 'last_checkpoint').exists()):
            raise RuntimeError(
                f'{self.work_dir} is expected to hold a run of {self.config} as it is now, but its run had another config. '
                'Remove the folder, or give another --work-dir.'
            )
        if begun and begun != revision:
            print(f'goes on with what {self.work_dir} holds of {begun}: remove the folder to begin again', flush=True)
        mark.write_text(f'{found} {begun or revision}')
        return begun or revision

    def judge(self) -> dict[str, dict[str, float]]:
        """The metrics of the trained model on each part that it may be judged on."""
        metrics, last = self.final_metrics()
        if last != self.epochs:
            # It was interrupted in its last validation: its last checkpoint is there, its result is not.
            metrics = self.evaluate(self.split)
        found = {self.split: metrics}
        if self.setting.trains_alike:
            # One training serves both parts.
            other = 'holdout' if self.split == 'test' else 'test'
            found[other] = self.evaluate(other)
        return found

    def final_metrics(self) -> tuple[dict[str, float], int]:
        """What was logged with the metric at last, and its epoch; not the best: choosing it on the test part would flatter."""
        last = [row for row in self.training.evaluations() if self.setting.metric in row][-1:] or [dict(step=0)]
        return {key: value for key, value in last[0].items() if key not in ('step', 'time', 'data_time')}, last[0]['step']

    def evaluate(self, split: str) -> dict[str, float]:
        """The metrics of the last checkpoint on a part of the data."""
        # What the model is made of, its teacher included: the checkpoint is of both.
        options = {key: value for key, value in self.options.items() if key.startswith('model.')}
        if split == 'holdout':
            options |= {key.replace('val_dataloader', 'test_dataloader'): value for key, value in self.setting.holdout.items()}
        out = self.work_dir / f'{split}.json'
        checkpoint = self.work_dir / f'epoch_{self.epochs}.pth'
        command = [sys.executable, 'tools/test.py', self.config, str(checkpoint), *self.flags]
        command += ['--work-dir', str(self.work_dir / split)]
        command += ['--out', str(out), '--out-item', 'metrics']
        if options:
            command += ['--cfg-options', *(f'{key}={value}' for key, value in options.items())]
        with open(self.work_dir / f'{split}.log', 'a') as log:
            code = start(command, log).wait()
        if code:
            raise RuntimeError(f'exit status {code} of the test, see {self.work_dir / f"{split}.log"}')
        return json.loads(out.read_text())

    def record(self, found: dict[str, dict[str, float]], seconds: float, revision: str) -> list[dict]:
        """Append what was found on each part of the data to the results, at once.

        Args:
            found (dict[str, dict[str, float]]): The metrics on each part, as they are logged.
            seconds (float): Time of this call's training.
            revision (str): The commit at which it began.

        Returns:
            list[dict]: The records.
        """
        setting = self.setting
        common = dict(
            task=setting.task,
            dataset=self.dataset,
            pair=setting.pair,
            method=method_of(self.variant),
            variant=self.variant,
            seed=self.seed,
            metric=setting.metric,
            epochs=self.epochs,
            train_images=self.train_images,
            seconds=seconds,
            command=shlex.join(['python', *self.training.command[1:]]),
            **origin(revision),
            device=get_device(),
            precision=precision(self.setting.amp),
        )
        if self.is_taught:
            common['teacher'] = self.teacher
        health = self.training.health()
        if health:
            common['health'] = health
        rows = []
        # Of the part on which it is judged while it trains.
        curve = [[round(at, 1), round(value * setting.scale, 4)] for at, value in self.training.curve(setting.metric)]
        for part, metrics in found.items():
            metrics = {key: round(value * setting.scale, 4) for key, value in metrics.items()}
            # mmdet logs no metric at all for a detector that finds nothing.
            value = 0.0 if setting.task == 'det' and not metrics else metrics[setting.metric]
            row = dict(common, split=part, value=value, metrics=metrics)
            rows.append(row | (dict(curve=curve) if part == self.split and curve else {}))
        if not self.is_recorded:  # a teacher that ended as before when it was trained again
            append(self.results, rows)
        return rows


@dataclass(frozen=True)
class TeacherRun(Run):
    """The training of a teacher, by its own schedule and at the place where the students' configs look for it."""

    split = 'test'

    @property
    def place(self) -> Path:
        """Its folder, from the repository's root."""
        return self.setting.teacher_checkpoint.parent

    @property
    def name(self) -> str:
        """What it is called in messages."""
        return self.place.name

    @property
    def train_images(self) -> int:
        """Size of its training part."""
        return self.setting.own_teacher_images or self.setting.train_images

    @property
    def options(self) -> dict:
        """What is changed of its config."""
        return {'randomness.seed': self.seed, **self.setting.teacher_options}

    @property
    def key(self) -> dict:
        """What tells its record from others, those of the same teacher trained elsewhere included."""
        return dict(dataset=self.dataset, variant=self.variant, seed=self.seed, teacher=self.teacher)

    def claim(self, revision: str) -> str:
        """Nothing to claim: anyone may train a teacher where the configs expect it."""
        return revision


def show(run: Run) -> None:
    """Print the table of what is recorded beside a run, and draw it above its folder."""
    where = run.dataset, run.split, run.epochs, run.results
    if selected(*where):
        path = run.work_dir.parent / 'accuracy.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(*where).savefig(path)
        print(f'\n{run.dataset} on {run.split}, {run.epochs} epochs; drawn in {path}\n\n{table(*where)}')


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    group = parser.add_mutually_exclusive_group(required=True)
    group.add_argument('--suite', choices=list(SUITES), help='all data sets of a task')
    group.add_argument('--dataset', choices=list(SETTINGS), help='one data set')
    parser.add_argument(
        '--methods', default='all', help=f'{", ".join(METHODS)} (all: those with a config), or variants: {", ".join(VARIANTS)}'
    )
    parser.add_argument('--seeds', default='0', help='comma separated')
    parser.add_argument('--epochs', type=int, help='budget of every student; default: that of the data set')
    parser.add_argument('--holdout', action='store_true', help='train on a part and judge on held-out training images')
    parser.add_argument('--jobs', type=int, default=1, help='runs at once')
    parser.add_argument('--results', type=Path, default=RESULTS, help='file to append to; default: %(default)s')
    parser.add_argument('--work-dir', default='work_dirs/benchmarks')
    args = parser.parse_args(argv)
    args.datasets = SUITES[args.suite] if args.suite else [args.dataset]
    args.seeds = [int(seed) for seed in args.seeds.split(',')]
    args.names = {}
    for dataset in args.datasets:
        known = applicable(SETTINGS[dataset])
        args.names[dataset] = [n for n in known if n in METHODS] if args.methods == 'all' else args.methods.split(',')
        for name in args.names[dataset]:
            if name not in (*known, 'teacher'):
                parser.error(f'--methods knows {", ".join(known)}, teacher or all for {dataset}, but got {name!r}')
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    runs: list[Run] = []
    teachers: list[Run] = []
    shown: list[Run] = []
    for dataset, names in args.names.items():
        given = dict(dataset=dataset, results=args.results, folder=Path(args.work_dir), holdout=args.holdout)
        given['epochs'] = args.epochs or SETTINGS[dataset].epochs
        planned = [Run(variant=name, seed=seed, **given) for seed in args.seeds for name in names if name != 'teacher']
        left = [run for run in planned if not run.is_recorded]
        is_missing = not (ROOT / SETTINGS[dataset].teacher_checkpoint).is_file()
        if 'teacher' in names or (is_missing and any(run.is_taught for run in left)):
            # One for all students, of seed 0: they look for it in one place.
            teachers.append(TeacherRun(variant='teacher', seed=0, **given | dict(epochs=SETTINGS[dataset].teacher_epochs)))
        runs += left
        shown += planned[:1]
    done = [teacher.finish() for teacher in teachers]
    # Nobody learns from a teacher that is not there.
    waiting = [run for run in runs if run.is_taught and not (ROOT / run.setting.teacher_checkpoint).is_file()]
    for run in waiting:
        print(f'FAILED {run.name}: its teacher is missing', flush=True)
    with ThreadPoolExecutor(args.jobs) as pool:
        done += pool.map(Run.finish, (run for run in runs if run not in waiting))
    for run in shown:
        show(run)
    if waiting or not all(done):
        sys.exit(1)


if __name__ == '__main__':
    main()
