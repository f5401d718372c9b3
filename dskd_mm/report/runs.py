"""Runs as their folders tell of them: config, scalars, environment, results of each class."""

import json
import math
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from mmengine.config import Config

from dskd_mm.utils.config import (
    added_losses,
    default_hook,
    is_distiller_config,
    load_config,
    model_config,
    student_config,
    type_name,
)

METRICS = (
    *('accuracy/top1', 'multi-label/mAP', 'coco/bbox_mAP', 'pascal_voc/mAP', 'coco/segm_mAP', 'mIoU'),
    *('single-label/f1-score', 'aAcc'),
)
"""Metrics that runs are compared by where ``save_best`` names none, the first that is there."""
NOT_METRICS = ('step', 'time', 'data_time', 'epoch', 'iter')
Scalars = list[dict[str, Any]]


def read_scalars(work_dir: str | Path) -> Scalars:
    """Read what the runs in a folder have logged, as mmengine's ``LocalVisBackend`` writes it.

    Args:
        work_dir (str | Path): The work dir. A run that was resumed has left several logs. What another one trained over, after
            it was resumed or began anew, does not count.

    Returns:
        list[dict]: One dict per logged step, oldest first: losses, ``time``, ``epoch`` and ``step`` in training, metrics and
        ``step`` in validation. Empty if nothing has been logged yet.
    """
    rows: Scalars = []
    # mmengine names a run's log by the time of its start.
    for log in sorted(Path(work_dir).glob('*/vis_data/scalars.json')):
        own: Scalars = []
        for line in log.read_text(encoding='utf-8').splitlines():
            with suppress(json.JSONDecodeError):  # being written right now, or the last one of a killed run
                own.append(json.loads(line))
        begin = next((row.get('step', 0) for row in own if 'loss' in row), None)
        if begin is not None:
            again = (i for i, row in enumerate(rows) if 'loss' in row and row.get('step', 0) >= begin)
            rows = rows[: next(again, len(rows))]
        rows += own
    return rows


@dataclass(frozen=True)
class RunLog:
    """A run's folder.

    Attributes:
        folder (Path): The work dir.
        config (Path): The whole config that mmengine wrote there.
        cfg (Config): It.
        training (list[dict]): What training logged, a dict for each logged step.
        evaluations (list[dict]): What each evaluation logged.
    """

    folder: Path
    config: Path
    cfg: Config
    training: Scalars
    evaluations: Scalars

    @classmethod
    def read(cls, folder: str | Path) -> 'RunLog':
        """Read a work dir.

        Raises:
            ValueError: If no run has logged anything there.
        """
        folder = Path(folder)
        rows = read_scalars(folder)
        # What is evaluated alone leaves a folder with a config, too.
        configs = [path.with_name('config.py') for path in sorted(folder.glob('*/vis_data/scalars.json'))]
        configs = [path for path in configs if path.is_file()]
        if not rows or not configs:
            raise ValueError(
                f'Expected the folder of a training with */vis_data/scalars.json and config.py in {str(folder)!r}, but there '
                "is none. Give the work_dir of a run whose config has the default vis_backends=[dict(type='LocalVisBackend')]."
            )
        cfg = Config.fromfile(configs[-1], import_custom_modules=False)
        dumped = sorted(folder.glob('*.py'), key=lambda path: path.stat().st_mtime, reverse=True)
        # Named after the time are those of configs without a file, and of the plain student are those that were exported.
        named = (path for path in dumped if not re.fullmatch(r'\d{8}_\d{6}', path.stem))
        own = (path for path in named if not is_distiller_config(cfg) or is_distiller_file(path))
        return cls(
            folder=folder,
            config=next(own, configs[-1]),
            cfg=cfg,
            training=[row for row in rows if 'loss' in row],
            evaluations=[row for row in rows if 'loss' not in row],
        )

    @property
    def name(self) -> str:
        """Return what its config is called."""
        return self.config.stem if self.config.stem != 'config' else self.folder.name

    @property
    def is_distilled(self) -> bool:
        """Return whether it trains a distiller."""
        return is_distiller_config(self.cfg)

    @property
    def added_losses(self) -> list[str]:
        """The user's names of ``distill_losses``."""
        return list(added_losses(self.cfg.model)) if self.is_distilled else []

    @property
    def method(self) -> str:
        """Return what the method is called: that of the distiller's class, or the losses that it adds."""
        if not self.is_distilled:
            return ''
        name = type_name(self.cfg.model).removesuffix('Distiller')
        return '+'.join([*([] if name == 'Configurable' else [name]), *self.added_losses]) or 'distilled'

    @cached_property
    def model(self) -> dict[str, Any]:
        """The config of the plain model that is trained."""
        return model_config(student_config(self.cfg)).to_dict()

    @cached_property
    def network(self) -> Any:
        """The plain model without its losses, which a method may weigh."""
        return without_losses(self.model)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """Settings of model, data and schedule: the same for runs that differ by their seeds."""
        cfg = self.cfg.to_dict()
        cfg['model'].pop('noise_seed', None)
        return {key: cfg.get(key) for key in ('model', 'train_dataloader', 'train_cfg', 'optim_wrapper', 'param_scheduler')}

    @property
    def teachers(self) -> list[dict[str, Any]]:
        """The arguments of its teacher, or teachers."""
        given = self.cfg.model.get('teacher') if self.is_distilled else []
        return [dict(teacher) for teacher in ([given] if isinstance(given, dict) else given or [])]

    def taught_by(self, other: 'RunLog') -> bool:
        """Return whether another run's checkpoint is its teacher."""
        folders = {Path(str(teacher.get('checkpoint', ''))).resolve().parent for teacher in self.teachers}
        return other.folder.resolve() in folders

    def metrics(self) -> list[str]:
        """Return the names of the single numbers that evaluations logged."""
        last = {key: value for row in self.evaluations for key, value in row.items()}
        return [key for key, value in last.items() if key not in NOT_METRICS and is_number(value)]

    def curve(self, metric: str) -> dict[int, float]:
        """Return a metric by the epoch, or the iteration, after which it was evaluated."""
        return {row['step']: float(row[metric]) for row in self.evaluations if is_number(row.get(metric))}

    @property
    def length(self) -> int | None:
        """Return how many epochs, or iterations, the whole training has, None if that is not told or left to a hook."""
        loop = self.cfg.get('train_cfg') or {}
        if any(type_name(hook) == 'EarlyStoppingHook' for hook in self.cfg.get('custom_hooks') or []):
            return None
        return loop.get('max_epochs' if self.unit == 'epoch' else 'max_iters')

    def lower_is_better(self, metric: str) -> bool:
        """Return whether the config says so, by ``save_best`` and ``rule`` of its CheckpointHook."""
        hook = default_hook(self.cfg, 'checkpoint')
        return hook.get('save_best') == metric and hook.get('rule') == 'less'

    @property
    def unit(self) -> str:
        """Return what evaluations are counted in."""
        loop = self.cfg.get('train_cfg') or {}
        by_epoch = loop.get('by_epoch', 'Iter' not in type_name(loop))
        return 'epoch' if by_epoch else 'iteration'

    @cached_property
    def log(self) -> str:
        """The text log of the last training, '' if there is none."""
        logs = [path for path in sorted(self.folder.glob('*/*.log')) if (path.parent / 'vis_data/scalars.json').is_file()]
        return logs[-1].read_text(encoding='utf-8', errors='replace') if logs else ''

    def environment(self) -> dict[str, str]:
        """Return what the log says of versions, seed and device."""
        found = {}
        for key in ('Python', 'PyTorch', 'TorchVision', 'MMEngine', 'CUDA available', 'GPU 0', 'seed'):
            match = re.search(rf'^ +{key}: (.+)$', self.log, re.MULTILINE)
            if match:
                found[key] = match[1].split(' (')[0].strip()
        seed = (self.cfg.get('randomness') or {}).get('seed')
        return found if seed is None else {**found, 'seed': str(seed)}

    def classwise(self) -> dict[str, float]:
        """Return the last result of each class where the host logs it.

        mmdet does with ``classwise=True`` of its evaluator, mmpretrain with ``SingleLabelMetric(average=None)``, mmseg prints a
        table into the text log.
        """
        last: dict[str, Any] = {key: value for row in self.evaluations for key, value in row.items()}
        found = {key[5:-10]: float(value) for key, value in last.items() if re.fullmatch(r'coco/.+_precision', key)}
        listed = last.get('single-label/f1-score_classwise')
        if isinstance(listed, list):
            found = {str(index): float(value) for index, value in enumerate(listed)}
        table = self.log.rpartition('per class results:')[2] if 'per class results:' in self.log else ''
        for name, value in re.findall(r'^\|\s*(\S[^|]*?)\s*\|\s*([\d.]+)\s*\|', table, re.MULTILINE):
            found[name] = float(value)
        return {name: value for name, value in found.items() if math.isfinite(value)}  # mmdet: NaN of a class without objects

    def pictures(self) -> list[Path]:
        """Return the pictures that ``dskd see`` left in the folder."""
        return sorted((self.folder / 'see').glob('*.png'))


def is_number(value: Any) -> bool:
    """Return whether what was logged is a number that can be drawn."""
    return isinstance(value, (int, float)) and math.isfinite(value)


def is_distiller_file(path: Path) -> bool:
    """Return whether a file is the config of a distiller."""
    with suppress(Exception):  # any code may lie there
        return is_distiller_config(Config.fromfile(path, import_custom_modules=False))
    return False


def read_runs(folders: Sequence[str | Path]) -> list[RunLog]:
    """Read runs, and those of their teachers where their checkpoints lie in a run's folder.

    Args:
        folders (Sequence[str | Path]): Work dirs.
    """
    given = {Path(folder).resolve(): folder for folder in folders}
    runs = [RunLog.read(folder) for folder in given.values()]
    for run in list(runs):
        for teacher in run.teachers:
            folder = Path(str(teacher.get('checkpoint', ''))).parent
            known = {other.folder.resolve() for other in runs}
            if folder.resolve() not in known and any(folder.glob('*/vis_data/scalars.json')):
                runs.append(RunLog.read(folder))
    return runs


def role(run: RunLog, runs: Sequence[RunLog]) -> str:
    """Return what a run is to the others: 'distilled', 'teacher' or 'plain'."""
    if run.is_distilled:
        # A distilled student may teach another.
        return 'distilled'
    distilled = [other for other in runs if other.is_distilled]
    if any(other.taught_by(run) for other in distilled):
        return 'teacher'
    teachers = [config for other in distilled for config in teacher_models(other)]
    return 'teacher' if run.model in teachers and run.network not in [other.network for other in distilled] else 'plain'


def without_losses(model: Any) -> Any:
    """Return a model's config without what its ``loss...`` keys say."""
    if isinstance(model, dict):
        return {key: without_losses(value) for key, value in model.items() if not str(key).startswith('loss')}
    return [without_losses(value) for value in model] if isinstance(model, (list, tuple)) else model


def teacher_models(run: RunLog) -> list[dict[str, Any]]:
    """Return the models of a run's teachers, as far as their configs are still there."""
    found = []
    for teacher in run.teachers:
        with suppress(OSError, ImportError, ValueError, TypeError):
            found.append(model_config(student_config(load_config(teacher.get('config', '')))).to_dict())
    return found
