"""Distil small students and show what they gained: a classifier, a detector and a segmenter.

For each task it trains a teacher, plain students and DSKD students of the same budget through tools/train.py, prints their
results as soon as they are there, and draws pictures. Complete runs are kept: after an interruption, or an edit of one config,
only what is missing is trained.
"""

import argparse
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from subprocess import Popen

import pandas as pd
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks.runner import ROOT, start
from examples.digits.experiments import NAMES, TASKS, Job, Run, make_runs, picture_paths, scenes_folder
from examples.digits.scenes import DigitScenes, is_complete

MODULE = [sys.executable, '-m']


class Command:
    """A module of this example as a job.

    Args:
        name (str): What it is called in messages.
        arguments (list[str]): The module and its arguments.
        needs (Sequence[Job]): What must be complete before.
        log (Path): What it prints.
        is_complete (Callable[[], bool]): Whether there is nothing to do. Defaults to never.
    """

    total = 1

    def __init__(
        self,
        name: str,
        arguments: list[str],
        needs: Sequence[Job],
        log: Path,
        is_complete: Callable[[], bool] = lambda: False,
    ) -> None:
        self.name, self.needs, self.log, self.is_complete = name, list(needs), log, is_complete
        self.arguments = arguments
        self.process: Popen | None = None
        self.is_done = False

    def start(self) -> None:
        """Start it."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open('w', encoding='utf-8') as log:
            self.process = start([*MODULE, *self.arguments], log)

    def finish(self) -> None:
        """Remember that it is done."""
        self.is_done = True

    def progress(self) -> tuple[int, str]:
        """Return 1 when it is done; there is nothing between."""
        return int(self.is_done), ''


class Board:
    """Shows how far the jobs are: bars in a terminal, lines elsewhere.

    Args:
        jobs (Sequence[Job]): All of them.
        console (Console): Where.
    """

    def __init__(self, jobs: Sequence[Job], console: Console) -> None:
        self.console = console
        self.progress = Progress(
            TextColumn('{task.description:<27}'),
            BarColumn(bar_width=30),
            TextColumn('{task.completed:>2}/{task.total}'),
            TextColumn('{task.fields[note]:<18}'),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self.bars: dict[Job, TaskID] = {
            job: self.progress.add_task(job.name, start=False, total=job.total, note='') for job in jobs
        }
        self.seen: dict[Job, int] = {}

    def started(self, job: Job) -> None:
        """Show that a job has begun."""
        self.progress.start_task(self.bars[job])
        self.line(f'{job.name}: started')

    def update(self, job: Job) -> None:
        """Show how far a job is."""
        done, note = job.progress()
        self.progress.update(self.bars[job], completed=done, note=note or 'at work')
        if self.seen.get(job, 0) < done < job.total:
            self.line(f'{job.name}: epoch {done}/{job.total}, {note}')
        self.seen[job] = done

    def ended(self, job: Job, state: str) -> None:
        """Show that a job is done."""
        _, note = job.progress()
        text = f'{note}, {state}' if note else state
        self.progress.update(self.bars[job], completed=job.total, note=text)
        self.progress.stop_task(self.bars[job])
        self.line(f'{job.name}: {text}')

    def line(self, text: str) -> None:
        """Print a line where bars cannot move."""
        if not self.console.is_terminal:
            self.console.print(text, highlight=False, soft_wrap=True)


def work(jobs: Sequence[Job], at_once: int, board: Board, ended: Callable[[Job], None]) -> None:
    """Do what is not complete, so many jobs at once, in their order.

    Args:
        jobs (Sequence[Job]): What is to be done; a job stands after those that it needs.
        at_once (int): Number of processes.
        board (Board): Shows the progress.
        ended (Callable[[Job], None]): Called with every job that is complete.

    Raises:
        SystemExit: If a job fails.
    """
    waiting: list[Job] = []
    running: list[Job] = []
    with board.progress:
        for job in jobs:
            if job.is_complete():
                board.ended(job, 'kept')
                ended(job)
            else:
                waiting.append(job)
        try:
            while waiting or running:
                ready = [job for job in waiting if not any(need in waiting or need in running for need in job.needs)]
                for job in ready[: at_once - len(running)]:
                    waiting.remove(job)
                    running.append(job)
                    job.start()
                    board.started(job)
                time.sleep(0.3)
                for job in list(running):
                    assert job.process is not None
                    code = job.process.poll()
                    board.update(job)
                    if code is not None:
                        running.remove(job)
                        check(job, code)
                        job.finish()
                        board.ended(job, 'done')
                        ended(job)
        finally:
            for job in running:
                if job.process is not None:
                    job.process.terminate()


def check(job: Job, code: int) -> None:
    """Show the end of a failed job's log and exit."""
    if code:
        tail = '\n'.join(job.log.read_text(encoding='utf-8', errors='replace').splitlines()[-15:])
        raise SystemExit(f'{tail}\n\n{job.name} failed (exit status {code}); its whole log: {job.log}')


def results(runs: Sequence[Run]) -> pd.DataFrame:
    """Return what the table shows, a row for each task and role: mean and deviation of the results, weights, step time."""
    rows = [
        dict(task=run.task.name, role=run.role, result=run.result, weights=run.weights(), step=run.milliseconds())
        for run in runs
    ]
    frame = pd.DataFrame(rows).groupby(['task', 'role'], sort=False)
    columns = dict(runs=('result', 'size'), mean=('result', 'mean'), deviation=('result', 'std'))
    return frame.agg(**columns, weights=('weights', 'first'), step=('step', 'mean')).fillna(0.0)


def summary(runs: Sequence[Run]) -> tuple[Table, list[str]]:
    """Return the table of results, and for each task what to make of it."""
    table = Table(title='On the test images after the last epoch (mean ± standard deviation)')
    table.add_column('Model', no_wrap=True)
    for column in ('Runs', 'Result (%)', 'Gain', 'Weights', 'Step (ms)'):
        table.add_column(column, justify='right', no_wrap=True)
    texts = []
    for name, frame in results(runs).groupby('task', sort=False):
        task, frame = TASKS[str(name)], frame.droplevel('task')
        table.add_section()
        table.add_row(task.title, '', task.metric, style='bold')
        gain = frame['mean']['dskd'] - frame['mean']['plain']
        deviation = (frame['deviation'][['plain', 'dskd']] ** 2).sum() ** 0.5
        several = frame['runs']['dskd'] > 1
        for role, row in frame.iterrows():
            result = f'{row["mean"]:.2f}' + (f' ± {row.deviation:.2f}' if row.runs > 1 else '')
            gained = f'{gain:+.2f}' + (f' ± {deviation:.2f}' if several else '') if role == 'dskd' else ''
            table.add_row(NAMES[role], f'{row.runs:.0f}', result, gained, f'{row.weights:,.0f}', f'{row.step:.1f}')
        gap = frame['mean']['teacher'] - frame['mean']['plain']
        texts.append(f'{task.title}: {verdict(gain, deviation, gap, several)}')
    return table, texts


def verdict(gain: float, deviation: float, gap: float, several: bool) -> str:
    """Put the gain in words that it supports.

    Args:
        gain (float): Mean result of the distilled students over that of the plain ones, in points.
        deviation (float): Standard deviation of that difference between two single runs.
        gap (float): The teacher's lead over the plain student, in points.
        several (bool): Whether there is more than one run of each student.
    """
    if not several:
        return f'Gain of DSKD: {gain:+.2f} points. One run each says nothing about noise: take more seeds.'
    if abs(gain) < deviation:
        return f'Gain of DSKD: {gain:+.2f} points, gain within noise (standard deviation {deviation:.2f}): no conclusion.'
    if gain < 0:
        return f'DSKD lost {-gain:.2f} points (standard deviation {deviation:.2f}): the plain students are better here.'
    share = f', {gain / gap:.0%} of the gap of {gap:.2f} to the teacher' if gap > 0 else ''
    return f'DSKD gained {gain:.2f} points (standard deviation {deviation:.2f}){share}.'


def plan(args: argparse.Namespace, work_dir: Path) -> tuple[dict[str, list[Run]], list[Job]]:
    """Return the runs of each task, and all jobs in the order in which they are to be done."""
    settings = DigitScenes(num_train=args.scenes, num_test=-(-args.scenes // 4))
    folder = scenes_folder(work_dir)
    sizes = ['--num-train', str(settings.num_train), '--num-test', str(settings.num_test)]
    command = ['examples.digits.scenes', str(folder), *sizes]
    scenes = Command('scenes', command, [], work_dir / 'scenes.log', lambda: is_complete(folder, settings))
    tasks: dict[str, list[Run]] = {}
    jobs: list[Job] = []
    for name in args.tasks:
        runs = tasks[name] = make_runs(name, work_dir, args.seeds, args.epochs, settings)
        if runs[0].task.uses_scenes:
            jobs += [] if scenes in jobs else [scenes]
            for run in runs:
                run.needs.append(scenes)
        command = ['examples.digits.pictures', name, '--work-dir', str(work_dir), '--seeds', str(args.seeds)]
        command += ['--epochs', str(args.epochs)] if args.epochs else []
        jobs += [*runs, Command(f'{name}: pictures', command, runs, work_dir / f'{name}_pictures.log')]
    return tasks, jobs


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--task', choices=list(TASKS), help='what to distil; default: all')
    parser.add_argument('--seeds', type=int, default=2, help='runs of each student; default: 2')
    parser.add_argument('--epochs', type=int, help="length of every run; default: the configs' own")
    parser.add_argument('--scenes', type=int, default=800, help='training images of det and seg; default: 800')
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
            mend = f"make env, or pip install -e '.[{name},demo]'"
            args.left_out.append(f'{task.title} is left out, for want of {", ".join(task.missing())}: {mend}')
    if args.left_out and (args.task or not args.tasks):
        parser.error('\n'.join(args.left_out))
    return args


def main() -> None:
    args, begin = parse_args(), time.perf_counter()
    console, work_dir = Console(), args.work_dir.resolve()
    console.print('[bold]DSKD[/bold]', highlight=False)
    for name in args.tasks:
        console.print(f'  {name}: {TASKS[name].title.lower()}, {TASKS[name].data}', highlight=False, soft_wrap=True)
    for sentence in args.left_out:
        console.print(sentence, highlight=False, markup=False, soft_wrap=True)
    console.print(f'logs and checkpoints: {work_dir}', highlight=False, soft_wrap=True)
    tasks, jobs = plan(args, work_dir)
    if args.fresh:
        for run in [run for runs in tasks.values() for run in runs]:
            shutil.rmtree(run.work_dir, ignore_errors=True)

    def show(runs: Sequence[Run]) -> None:
        table, texts = summary(runs)
        console.print(table)
        for text in texts:
            console.print(text, style='bold', highlight=False)
        console.print(f'{time.perf_counter() - begin:.0f} s so far.', highlight=False)

    complete: list[Job] = []

    def ended(job: Job) -> None:
        complete.append(job)
        for runs in tasks.values():
            if job in runs and all(run in complete for run in runs) and len(tasks) > 1:
                show(runs)

    work(jobs, args.jobs, Board(jobs, console), ended)
    show([run for runs in tasks.values() for run in runs])
    pictures = [path for name in tasks for path in picture_paths(name, work_dir)]
    console.print('\nPictures:', *(f'  {path}' for path in pictures), sep='\n', highlight=False, soft_wrap=True)
    exported = [path for runs in tasks.values() if (path := runs[-1].work_dir / 'student_last.pth').is_file()]
    console.print('Plain students of the last runs, for the hosts alone:', highlight=False)
    console.print(*(f'  {path}' for path in exported), sep='\n', highlight=False, soft_wrap=True)


if __name__ == '__main__':
    main()
