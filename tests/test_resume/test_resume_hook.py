"""What a resumed run needs besides weights; tests/test_robustness/test_interruption.py kills real ones."""

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.fileio import LocalBackend, register_backend
from mmengine.hooks import CheckpointHook, Hook
from mmengine.registry import DATA_SAMPLERS, HOOKS
from mmengine.runner import Runner
from mmengine.runner._flexible_runner import FlexibleRunner
from torch.utils.data import BatchSampler, Sampler

from dskd_mm.resume import ResumeHook
from dskd_mm.resume.saving import ATOMIC, AtomicBackend
from dskd_mm.utils.checkpoint import load_checkpoint_file
from support import plain_run_config, toy_runner


class Stopped(Exception):
    """As good as a kill, in this process."""


@HOOKS.register_module()
class StopHook(Hook):
    """Ends a run before or in a validation, or after an iteration, and notes what happens.

    Args:
        stage (str): A method of hooks.
        count (int): At which call of it.
    """

    priority = 'LOWEST'

    def __init__(self, stage: str = '', count: int = 0) -> None:
        self.stage, self.count = stage, count
        self.validated: list[int] = []
        self.began = 0

    def before_train(self, runner: Runner) -> None:
        self.began = runner.iter

    def before_val_epoch(self, runner: Runner) -> None:
        self.validated.append(runner.iter)
        self._stop('before_val_epoch')

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self._stop('after_train_iter')

    def _stop(self, stage: str) -> None:
        self.count -= stage == self.stage
        if stage == self.stage and self.count == 0:
            raise Stopped


@DATA_SAMPLERS.register_module()
class GroupedBatchSampler(BatchSampler):
    """A batch sampler of a config, such as mmdet's AspectRatioBatchSampler."""

    def __init__(self, sampler: Sampler, batch_size: int) -> None:
        super().__init__(sampler, batch_size, drop_last=False)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    """A plain run of 3 epochs of 4 batches."""
    cfg = plain_run_config(str(tmp_path / 'work'))
    cfg.train_cfg.max_epochs = 3
    cfg.custom_hooks = [dict(type='dskd_mm.ResumeHook'), dict(type='StopHook')]
    return cfg


def run(config: Config, work_dir: Path, stop: tuple[str, int] | None = None, **options: Any) -> tuple[Runner, StopHook]:
    """Run to the end, or to where a StopHook ends it."""
    if stop is not None:
        options['custom_hooks'] = [dict(type='dskd_mm.ResumeHook'), dict(type='StopHook', stage=stop[0], count=stop[1])]
    runner = toy_runner(config, work_dir=str(work_dir), **options)
    if stop is None:
        runner.train()
    else:
        with pytest.raises(Stopped):
            runner.train()
    (hook,) = (hook for hook in runner.hooks if isinstance(hook, StopHook))
    return runner, hook


def assert_same_models(left: Runner, right: Runner) -> None:
    ours, theirs = left.model.state_dict(), right.model.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


@pytest.mark.parametrize('epoch', [1, 3])
def test_an_interrupted_validation_is_made_up_for(config: Config, tmp_path: Path, epoch: int) -> None:
    whole, hook = run(config, tmp_path / 'whole')
    assert hook.validated == [4, 8, 12]
    run(config, tmp_path / 'work', stop=('before_val_epoch', epoch))
    resumed, hook = run(config, tmp_path / 'work', resume=True)
    assert hook.validated == [4, 8, 12][epoch - 1 :]
    assert_same_models(whole, resumed)
    names = [{path.name for path in (tmp_path / name).glob('best_*')} for name in ('whole', 'work')]
    assert names[0] == names[1] and len(names[0]) == 1
    assert whole.message_hub.get_info('best_score') == resumed.message_hub.get_info('best_score')


def test_what_was_validated_before_it_was_saved_is_not_validated_again(config: Config, tmp_path: Path) -> None:
    run(config, tmp_path / 'work', stop=('after_train_iter', 6))
    # The first epoch always has the best score so far, so its checkpoint is saved once more after the validation.
    saved = load_checkpoint_file(str(tmp_path / 'work' / 'epoch_1.pth'))
    assert saved['message_hub']['runtime_info']['loop_stage'] == 'val'
    assert run(config, tmp_path / 'work', resume=True)[1].validated == [8, 12]


@pytest.mark.parametrize('by_epoch', [True, False])
def test_no_validation_is_made_up_for_where_none_was_due(config: Config, tmp_path: Path, by_epoch: bool) -> None:
    config.train_cfg = dict(by_epoch=by_epoch, val_interval=2, **(dict(max_epochs=4) if by_epoch else dict(max_iters=4)))
    config.default_hooks.checkpoint = dict(type='CheckpointHook', by_epoch=by_epoch, interval=1)
    config.train_dataloader.sampler = dict(type='DefaultSampler' if by_epoch else 'InfiniteSampler', shuffle=True)
    run(config, tmp_path / 'work', stop=('after_train_iter', 6 if by_epoch else 1))
    assert run(config, tmp_path / 'work', resume=True)[1].validated == ([8, 16] if by_epoch else [2, 4])


def test_a_checkpoint_within_an_epoch_holds_its_place_and_the_gradients_under_way(config: Config, tmp_path: Path) -> None:
    config.optim_wrapper.accumulative_counts = 3
    config.default_hooks.checkpoint = dict(type='CheckpointHook', by_epoch=False, interval=5)
    whole, _ = run(config, tmp_path / 'whole')
    run(config, tmp_path / 'work', stop=('after_train_iter', 7))
    saved = load_checkpoint_file(str(tmp_path / 'work' / 'iter_5.pth'))
    assert (saved['meta']['epoch'], saved['meta']['iter'], saved['meta']['batch']) == (1, 5, 1)
    assert set(saved['gradients']) == {name for name, _ in whole.model.named_parameters()}
    resumed, hook = run(config, tmp_path / 'work', resume=True)
    assert resumed.iter == 12 and hook.validated == [8, 12]
    assert_same_models(whole, resumed)


@pytest.mark.parametrize(('sampler', 'workers'), [('InfiniteSampler', 0), ('InfiniteSampler', 2), ('DefaultSampler', 0)])
def test_a_run_by_iterations_goes_on_with_the_data_it_would_have_seen(
    config: Config, tmp_path: Path, sampler: str, workers: int
) -> None:
    augmented = [dict(type='RandomCrop', crop_size=16, padding=4), dict(type='RandomFlip', prob=0.5), dict(type='PackInputs')]
    config.train_dataloader.dataset.pipeline = augmented
    config.train_dataloader.update(num_workers=workers, persistent_workers=workers > 0)
    config.train_dataloader.sampler.type = sampler
    config.train_cfg = dict(by_epoch=False, max_iters=7, val_interval=7)
    config.default_hooks.checkpoint = dict(type='CheckpointHook', by_epoch=False, interval=5)
    whole, _ = run(config, tmp_path / 'whole')
    run(config, tmp_path / 'work', stop=('after_train_iter', 6))
    resumed, hook = run(config, tmp_path / 'work', resume=True)
    assert (hook.began, resumed.iter) == (5, 7)
    assert_same_models(whole, resumed)


@pytest.mark.parametrize('batch_sampler', [None, dict(type='GroupedBatchSampler')])
@pytest.mark.parametrize('by_epoch', [True, False])
def test_a_run_without_a_seed_goes_on_with_the_one_that_was_drawn(
    config: Config, tmp_path: Path, batch_sampler: dict | None, by_epoch: bool
) -> None:
    config.randomness = dict(seed=None)
    config.train_dataloader.batch_sampler = batch_sampler
    if not by_epoch:
        config.train_dataloader.sampler.type = 'InfiniteSampler'
        config.train_cfg = dict(by_epoch=False, max_iters=12, val_interval=12)
    config.default_hooks.checkpoint = dict(type='CheckpointHook', by_epoch=False, interval=5)
    whole, _ = run(config, tmp_path / 'whole')
    (tmp_path / 'work').mkdir()
    shutil.copy(tmp_path / 'whole/iter_5.pth', tmp_path / 'work')
    resumed, hook = run(config, tmp_path / 'work', resume=True)
    assert (hook.began, resumed.iter) == (5, 12) and resumed.seed == whole.seed
    assert_same_models(whole, resumed)


def test_the_flexible_runner_resumes_too(config: Config, tmp_path: Path) -> None:
    def train(name: str, **options: Any) -> FlexibleRunner:
        cfg = copy.deepcopy(config)
        cfg.merge_from_dict(dict(work_dir=str(tmp_path / name), experiment_name=f'{name}{options}', env_cfg={}, **options))
        runner = FlexibleRunner.from_cfg(cfg)
        runner.train()
        return runner

    whole = train('whole')
    # The best score makes mmengine save it again after the validation, with one epoch too many.
    assert train('work', **{'train_cfg.max_epochs': 1}).iter == 4
    resumed = train('work', resume=True)
    assert (resumed.epoch, resumed.iter) == (3, 12)
    assert_same_models(whole, resumed)


def test_several_processes_are_told_that_their_gradients_are_not_saved(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.optim_wrapper.accumulative_counts = 3
    runner = toy_runner(config, train_cfg__max_epochs=2)
    warnings: list[str] = []
    monkeypatch.setattr('dskd_mm.resume.hook.get_world_size', lambda: 2)
    monkeypatch.setattr(runner.logger, 'warning', lambda message, *others: warnings.append(message))
    runner.train()
    assert any('those of other processes are not in it' in message for message in warnings)
    assert 'gradients' not in load_checkpoint_file(str(tmp_path / 'work' / 'epoch_1.pth'))


def test_a_copied_run_keeps_to_its_own_files(config: Config, tmp_path: Path) -> None:
    run(config, tmp_path / 'work', stop=('after_train_iter', 9))
    (tmp_path / 'work').rename(tmp_path / 'moved')
    resumed, _ = run(config, tmp_path / 'moved', resume=True)
    assert not (tmp_path / 'work').exists()
    assert Path(resumed.message_hub.get_info('best_ckpt')).parent == tmp_path / 'moved'
    assert (tmp_path / 'moved' / 'epoch_3.pth').exists() and len(list((tmp_path / 'moved').glob('best_*'))) == 1


def test_checkpoints_in_another_folder_are_found(config: Config, tmp_path: Path) -> None:
    checkpoint = dict(type='CheckpointHook', interval=1, out_dir=str(tmp_path / 'out'), filename_tmpl='state-{}.pth')
    config.default_hooks.checkpoint = checkpoint
    run(config, tmp_path / 'work', stop=('after_train_iter', 9))
    (tmp_path / 'work' / 'last_checkpoint').unlink()
    resumed, hook = run(config, tmp_path / 'work', resume=True)
    assert (hook.began, resumed.iter) == (8, 12)


def test_a_named_checkpoint_and_a_fresh_start_are_left_to_the_runner(config: Config, tmp_path: Path) -> None:
    (tmp_path / 'work').mkdir()
    (tmp_path / 'work' / 'last_checkpoint').touch()  # as it is left if writing it is interrupted
    fresh, hook = run(config, tmp_path / 'work', resume=True)
    assert (hook.began, fresh.iter) == (0, 12)
    path = str(tmp_path / 'work' / 'epoch_1.pth')
    resumed, hook = run(config, tmp_path / 'other', resume=True, load_from=path)
    assert hook.began == 4 and hook.validated == [8, 12]
    assert_same_models(fresh, resumed)


def test_other_backends_write_as_they_do(config: Config, tmp_path: Path) -> None:
    class Elsewhere(LocalBackend):
        """Stands for remote storage."""

    register_backend('elsewhere', Elsewhere, force=True)
    config.default_hooks.checkpoint = dict(type='CheckpointHook', backend_args=dict(backend='elsewhere'))
    for expected, options in ((Elsewhere, {}), (AtomicBackend, dict(default_hooks__checkpoint__backend_args=None))):
        runner, _ = run(config, tmp_path / 'work', train_cfg__max_epochs=1, **options)
        (hook,) = (hook for hook in runner.hooks if isinstance(hook, CheckpointHook))
        assert type(hook.file_backend) is expected
        assert hook.backend_args['backend'] == ('elsewhere' if expected is Elsewhere else ATOMIC)


def test_it_does_nothing_to_a_run_that_only_tests(config: Config) -> None:
    runner = toy_runner(config)
    assert runner.test() and any(isinstance(hook, ResumeHook) for hook in runner.hooks)
    assert not hasattr(runner.test_dataloader.dataset, '__getitems__')
