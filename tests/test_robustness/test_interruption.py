"""Runs that are killed at any point and resumed end as if they had not been."""

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config

from dskd_mm.testing import random_teacher
from dskd_mm.utils.checkpoint import load_checkpoint_file
from support import (
    detector_run_config,
    distiller_run_config,
    plain_run_config,
    segmentor_run_config,
    write_distiller_files,
    write_scenes,
)
from support.interruption import Training, kill_at_random

TRAIN = Path(__file__).parents[2] / 'tools' / 'train.py'
EMA = dict(type='EMAHook', momentum=0.1)
AUGMENTED = [dict(type='RandomCrop', crop_size=16, padding=2), dict(type='RandomFlip', prob=0.5), dict(type='PackInputs')]


def classifier(folder: Path, method: str, student: dict[str, Any] | None = None, **kwargs: Any) -> Config:
    """A distiller of a toy classifier: 3 epochs of 5 batches, the last one smaller, with random augmentation."""
    if method:
        cfg = distiller_run_config(str(folder), random_teacher(str(folder)), student, **kwargs)
        cfg.model.type = f'dskd_mm.{method}Distiller'
    else:
        cfg = plain_run_config(str(folder), **(student or {}))
    cfg.train_dataloader.dataset.update(num_images=36, pipeline=AUGMENTED)
    cfg.train_cfg.max_epochs = 3
    cfg.optim_wrapper = dict(optimizer=dict(type='AdamW', lr=0.01))
    cfg.param_scheduler = [dict(type='CosineAnnealingLR', T_max=15, by_epoch=False)]
    cfg.default_hooks.checkpoint.max_keep_ckpts = 1
    return cfg


def with_workers(cfg: Config) -> Config:
    cfg.train_dataloader.update(num_workers=2, persistent_workers=True)
    return cfg


def dskd_with_averages(folder: Path) -> Config:
    cfg = classifier(folder, 'DSKD')
    cfg.custom_hooks = [EMA]
    # A schedule that follows the validation's score.
    cfg.param_scheduler = [dict(type='ReduceOnPlateauLR', monitor='accuracy/top1', rule='greater', factor=0.5, patience=0)]
    return cfg


def sokd_with_workers(folder: Path) -> Config:
    return with_workers(classifier(folder, 'SoKD', search_iters=8))


def dropout_within_epochs(folder: Path) -> Config:
    """Half precision, gradients accumulated across the ends of epochs, mixed images and dropout, saved within epochs."""
    cfg = classifier(folder, 'DSKD', dict(kind='vit'))
    cfg.model.student.backbone.drop_rate = 0.2
    cfg.model.student.train_cfg = dict(augments=[dict(type='Mixup', alpha=0.8), dict(type='CutMix', alpha=1.0)])
    cfg.optim_wrapper.update(type='dskd_mm.BF16OptimWrapper', accumulative_counts=2)
    cfg.default_hooks.checkpoint.update(by_epoch=False, interval=3, max_keep_ckpts=2)
    return cfg


def detector(folder: Path, kind: str, method: str) -> Config:
    """A distiller of a toy detector: 3 epochs of 3 batches."""
    data = write_scenes(folder / 'data', num_train=7)
    path = write_distiller_files(folder, detector_run_config(kind, data), detector_run_config(kind, data, width=6), wide='cls')
    cfg = Config.fromfile(path)
    cfg.model.type = f'dskd_mm.{method}Distiller'
    cfg.train_cfg.max_epochs = 3
    cfg.default_hooks.checkpoint.update(max_keep_ckpts=1, save_best='auto')
    return cfg


def segmentor(folder: Path, kind: str, method: str) -> Config:
    """A distiller of a toy segmenter: 10 iterations on an endless sampler."""
    data = write_scenes(folder / 'data', num_train=7)
    teacher = segmentor_run_config(kind, data, width=6)
    path = write_distiller_files(folder, segmentor_run_config(kind, data), teacher, wide='conv_seg')
    cfg = with_workers(Config.fromfile(path))
    cfg.model.type = f'dskd_mm.{method}Distiller'
    cfg.train_cfg.update(max_iters=10, val_interval=4)
    cfg.default_hooks.checkpoint.update(interval=3, max_keep_ckpts=2, save_best='mIoU')
    cfg.custom_hooks = [*cfg.custom_hooks, EMA]
    return cfg


CASES: dict[str, Callable[[Path], Config]] = {
    'dskd_with_averages': dskd_with_averages,
    'sokd_while_it_searches': sokd_with_workers,
    'dropout_within_epochs': dropout_within_epochs,
    'plain_with_workers': lambda folder: with_workers(classifier(folder, '')),
    'dskd_of_faster_rcnn': lambda folder: detector(folder, 'faster_rcnn', 'DSKD'),
    'sokd_of_retinanet': lambda folder: with_workers(detector(folder, 'retinanet', 'SoKD')),
    'dskd_of_fcn': lambda folder: segmentor(folder, 'fcn', 'DSKD'),
    'lshfm_of_pspnet': lambda folder: segmentor(folder, 'pspnet', 'LSHFM'),
}


def assert_same(left: Any, right: Any, where: str = '') -> None:
    """Assert that nested values are equal, bit for bit."""
    if isinstance(left, torch.Tensor):
        assert left.dtype == right.dtype and torch.equal(left, right), where
    elif isinstance(left, dict):
        assert left.keys() == right.keys(), where
        for key, value in left.items():
            assert_same(value, right[key], f'{where}.{key}')
    elif isinstance(left, (list, tuple)):
        assert len(left) == len(right), where
        for index, (one, other) in enumerate(zip(left, right, strict=True)):
            assert_same(one, other, f'{where}.{index}')
    else:
        assert left == right, where


def outcome(work_dir: Path) -> dict[str, Any]:
    """All that a finished run leaves: its last checkpoint, the best one and the exported students, by their names."""
    saved = [*work_dir.glob('epoch_*.pth'), *work_dir.glob('iter_*.pth')]
    last = max(saved, key=lambda path: int(path.stem.split('_')[1]))
    names = [last.name, *(path.name for pattern in ('best_*.pth', 'student_*.pth') for path in work_dir.glob(pattern))]
    files = {name: load_checkpoint_file(str(work_dir / name)) for name in names}
    for content in files.values():
        content['meta'] = {key: content['meta'].get(key) for key in ('epoch', 'iter')}
        if 'message_hub' in content:
            hub = content.pop('message_hub')
            content['best score'] = hub['runtime_info'].get('best_score')
            # All that was logged in the whole run: losses, health figures, learning rates.
            logged = {key: value.data[0].tolist() for key, value in hub['log_scalars'].items() if 'time' not in key}
            content['log'] = {key: value for key, value in logged.items() if key.startswith('train/')}
    return files


def train(config: Path, work_dir: Path, *arguments: Any, kill_at: str | None = None) -> Training:
    """Start a training; what it prints is in ``<work_dir>.log``."""
    return Training(TRAIN, [config, '--work-dir', work_dir, *arguments], Path(f'{work_dir}.log'), kill_at)


def assert_ends(training: Training) -> str:
    """Assert that a training ends well, and return what it printed."""
    code, printed = training.finish(), training.log.read_text()
    assert code == 0, printed[-4000:]
    return printed


def test_calls_are_counted_wherever_a_process_is_killed(tmp_path: Path) -> None:
    script = tmp_path / 'call.py'
    script.write_text("""
from mmengine.runner import Runner
runner = object.__new__(Runner)
runner._hooks = []
while True:
    runner.call_hook('before_run')
""")
    for number in range(20):
        training = Training(script, [], tmp_path / 'log')
        assert training.kill_after(1, 0.001 * number)
        assert training.calls > 0


@pytest.mark.slow
@pytest.mark.parametrize('kills', [1, pytest.param(3, marks=pytest.mark.soak)])
@pytest.mark.parametrize('case', CASES)
def test_a_killed_run_ends_as_an_uninterrupted_one(tmp_path: Path, case: str, kills: int) -> None:
    config, whole, killed = tmp_path / 'config.py', tmp_path / 'whole', tmp_path / 'killed'
    CASES[case](tmp_path).dump(str(config))
    training = train(config, whole)
    assert_ends(training)
    seed = random.randrange(2**31)
    points = kill_at_random(TRAIN, [config], killed, training.calls, kills, random.Random(seed))
    print(f'Killed at {points} of {training.calls} calls of hooks, which follow from {seed}.')  # shown if it fails
    assert len(points) == kills
    assert_same(outcome(killed), outcome(whole))


def test_a_run_without_a_seed_goes_on_with_the_one_it_drew(tmp_path: Path) -> None:
    config = tmp_path / 'config.py'
    cfg = with_workers(classifier(tmp_path, ''))
    cfg.randomness = dict(seed=None)
    cfg.dump(str(config))
    first = train(config, tmp_path / 'killed')
    assert first.kill_after(45, 0.0)  # in the second of three epochs
    drawn = {load_checkpoint_file(str(path))['meta']['seed'] for path in (tmp_path / 'killed').glob('epoch_*.pth')}
    assert_ends(train(config, tmp_path / 'killed', '--resume'))
    seed = load_checkpoint_file(str(tmp_path / 'killed/epoch_3.pth'))['meta']['seed']
    assert drawn == {seed}
    assert_ends(train(config, tmp_path / 'whole', '--cfg-options', f'randomness.seed={seed}'))
    assert_same(outcome(tmp_path / 'killed'), outcome(tmp_path / 'whole'))


# Damaged and missing files.


@pytest.fixture(scope='module')
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with config.py, which keeps all checkpoints, and its uninterrupted run in 'whole'."""
    folder = tmp_path_factory.mktemp('damage')
    cfg = classifier(folder, 'DSKD')
    cfg.default_hooks.checkpoint.max_keep_ckpts = -1
    cfg.log_level = 'INFO'
    cfg.dump(str(folder / 'config.py'))
    assert_ends(train(folder / 'config.py', folder / 'whole'))
    return folder


@pytest.mark.parametrize('name', ['epoch_2.pth', 'best_accuracy', 'student_last.pth'])
def test_killed_in_the_midst_of_writing(whole: Path, tmp_path: Path, name: str) -> None:
    config, work_dir = whole / 'config.py', tmp_path / 'work'
    options = ['--cfg-options', 'default_hooks.checkpoint.max_keep_ckpts=1']
    assert train(config, work_dir, *options, kill_at=name).finish() == -9
    (partial,) = work_dir.glob('*.partial')
    assert partial.name.startswith(name)
    # Whatever carries the name of a checkpoint is one: with max_keep_ckpts=1, the only one.
    (last,) = work_dir.glob('epoch_*.pth')
    assert last.name == 'epoch_1.pth' and int(load_checkpoint_file(str(last))['state_dict']['iteration']) == 5
    assert_ends(train(config, work_dir, '--resume', *options))
    assert_same(outcome(work_dir), outcome(whole / 'whole'))
    assert not list(work_dir.glob('*.partial'))


@pytest.mark.parametrize('unit', ['epochs', 'iterations'])
def test_killed_in_the_only_validation(tmp_path: Path, unit: str) -> None:
    """The last checkpoint learns the best score, which a resumed run finds before it saves anything."""
    config = tmp_path / 'config.py'
    cfg = classifier(tmp_path, 'DSKD')
    cfg.train_cfg.val_begin = cfg.train_cfg.max_epochs
    if unit == 'iterations':
        cfg.default_hooks.checkpoint.update(by_epoch=False, interval=3)
    cfg.dump(str(config))
    assert_ends(train(config, tmp_path / 'whole'))
    assert train(config, tmp_path / 'killed', kill_at='best_accuracy').finish() == -9
    assert_ends(train(config, tmp_path / 'killed', '--resume'))
    whole = outcome(tmp_path / 'whole')
    assert all(content.get('best score', 0) is not None for content in whole.values())
    assert_same(outcome(tmp_path / 'killed'), whole)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def change_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def forget(path: Path) -> None:
    """As mmengine leaves it if it is killed while it writes down where the last checkpoint is."""
    path.with_name('last_checkpoint').write_text('')


@pytest.mark.parametrize(('harm', 'first'), [(truncate, 2), (change_a_byte, 2), (forget, 3)])
def test_the_newest_intact_checkpoint_is_resumed_from(
    whole: Path, tmp_path: Path, harm: Callable[[Path], None], first: int
) -> None:
    work_dir = tmp_path / 'work'
    shutil.copytree(whole / 'whole', work_dir)
    stamps = {path: path.stat().st_mtime_ns for path in (whole / 'whole').glob('*.pth')}
    (work_dir / 'last_checkpoint').write_text(str(work_dir / 'epoch_3.pth'))
    harm(work_dir / 'epoch_3.pth')
    printed = assert_ends(train(whole / 'config.py', work_dir, '--resume'))
    assert f'Load checkpoint from {work_dir}/epoch_{first}.pth' in printed
    assert (f'The checkpoint {work_dir}/epoch_3.pth' in printed and 'is truncated or damaged' in printed) == (first == 2)
    assert_same(outcome(work_dir), outcome(whole / 'whole'))
    # What was copied is left alone, its best checkpoint included.
    assert {path: path.stat().st_mtime_ns for path in (whole / 'whole').glob('*.pth')} == stamps


def test_without_an_intact_checkpoint_nothing_is_started(whole: Path, tmp_path: Path) -> None:
    work_dir = tmp_path / 'work'
    work_dir.mkdir()
    for name in ('epoch_1.pth', 'epoch_2.pth'):
        (work_dir / name).write_bytes((whole / 'whole/epoch_3.pth').read_bytes()[:1000])
    training = train(whole / 'config.py', work_dir, '--resume')
    assert training.finish() == 1
    printed = training.log.read_text()
    assert 'Expected an intact checkpoint to resume from' in printed and 'or remove them to start' in printed
    assert 'epoch_1.pth' in printed and 'epoch_2.pth' in printed and not list(work_dir.glob('student_*'))


def test_a_full_disk_ends_with_an_error_and_the_older_checkpoint_intact(whole: Path, tmp_path: Path) -> None:
    config, work_dir = whole / 'config.py', tmp_path / 'work'
    work_dir.mkdir()
    # Where the second checkpoint is written there is no space.
    (work_dir / 'epoch_2.pth.partial').symlink_to('/dev/full')
    training = train(config, work_dir)
    assert training.finish() == 1
    printed = training.log.read_text()
    assert f"OSError: [Errno 28] No space left on device: '{work_dir}/epoch_2.pth' expects " in printed
    assert 'older checkpoints are intact: make room, then go on with --resume' in printed
    assert [path.name for path in work_dir.glob('epoch_*')] == ['epoch_1.pth']
    assert_ends(train(config, work_dir, '--resume'))
    assert_same(outcome(work_dir), outcome(whole / 'whole'))
