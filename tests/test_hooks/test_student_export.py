"""The plain student beside every saved checkpoint."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS as MMENGINE_MODELS

from dskd_mm.hooks import StudentExportHook
from dskd_mm.testing import classifier_config
from dskd_mm.utils.checkpoint import load_checkpoint_file, model_state
from support import distiller_run_config, plain_run_config, toy_runner

HOOKS = [dict(type='dskd_mm.StudentExportHook')]


@pytest.fixture(scope='module')
def teacher_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp('teacher'))


@pytest.fixture
def config(teacher_dir: str, tmp_path: Path) -> Config:
    cfg = distiller_run_config(teacher_dir)
    cfg.work_dir = str(tmp_path)
    cfg.custom_hooks = HOOKS
    return cfg


def assert_is_student_of(exported: Path, source: Path) -> None:
    state = model_state(load_checkpoint_file(str(source)))
    student = load_checkpoint_file(str(exported))
    assert set(student) == {'meta', 'state_dict'}
    assert student['state_dict'].keys() == state.keys()
    assert all(torch.equal(student['state_dict'][key], value) for key, value in state.items())


def test_the_last_and_the_best_student_survive_the_removal_of_old_checkpoints(config: Config, tmp_path: Path) -> None:
    runner = toy_runner(config, default_hooks__checkpoint__max_keep_ckpts=1, train_cfg__max_epochs=3)
    runner.train()
    assert sorted(path.name for path in tmp_path.glob('epoch_*.pth')) == ['epoch_3.pth']
    (best,) = tmp_path.glob('best_*.pth')
    assert_is_student_of(tmp_path / 'student_last.pth', tmp_path / 'epoch_3.pth')
    assert_is_student_of(tmp_path / 'student_best.pth', best)
    assert not list(tmp_path.glob('*.partial'))
    # It is what the host itself would have saved: it loads strictly, and tells the classes and the plain config.
    student = load_checkpoint_file(str(tmp_path / 'student_last.pth'))
    plain = MMENGINE_MODELS.build(classifier_config())
    plain.load_state_dict(student['state_dict'], strict=True)
    assert student['meta']['dataset_meta']['classes'][0] == 'pattern 0'
    assert student['meta']['epoch'] == 3
    cfg = Config.fromstring(student['meta']['cfg'], '.py')
    assert cfg.model.type == 'ImageClassifier'
    assert 'DSKDDistiller' not in cfg.pretty_text and 'StudentExportHook' not in cfg.pretty_text


def test_checkpoints_of_iterations_and_of_several_best_scores(config: Config, tmp_path: Path) -> None:
    config.train_cfg = dict(by_epoch=False, max_iters=5, val_interval=2)
    config.val_evaluator.topk = (1, 2)
    keys = ['accuracy/top1', 'accuracy/top2']
    runner = toy_runner(config, default_hooks__checkpoint=dict(by_epoch=False, interval=2, save_best=keys))
    seen: list[dict] = []
    export_new = StudentExportHook.export_new
    hook = next(hook for hook in runner.hooks if isinstance(hook, StudentExportHook))
    hook.export_new = lambda runner: (export_new(hook, runner), seen.append(dict(hook._exported)))  # type: ignore[method-assign]
    runner.train()
    names = {path.name for path in tmp_path.glob('student_*.pth')}
    assert names == {'student_last.pth', 'student_best_accuracy_top1.pth', 'student_best_accuracy_top2.pth'}
    assert_is_student_of(tmp_path / 'student_last.pth', tmp_path / 'iter_5.pth')
    for key in ('accuracy_top1', 'accuracy_top2'):
        (best,) = tmp_path.glob(f'best_{key}_*.pth')
        assert_is_student_of(tmp_path / f'student_best_{key}.pth', best)
    # Not only at the end.
    assert {Path(state['student_last.pth'][0]).name for state in seen if state} == {'iter_2.pth', 'iter_4.pth', 'iter_5.pth'}


def test_a_checkpoint_that_keeps_its_name_is_exported_again(config: Config, tmp_path: Path) -> None:
    hook = dict(type='CheckpointHook', interval=1, filename_tmpl='latest.pth')
    toy_runner(config, default_hooks__checkpoint=hook).train()
    assert_is_student_of(tmp_path / 'student_last.pth', tmp_path / 'latest.pth')
    assert load_checkpoint_file(str(tmp_path / 'student_last.pth'))['meta']['epoch'] == 2


def test_a_checkpoint_that_cannot_be_read_back_does_not_end_the_training(config: Config, tmp_path: Path) -> None:
    runner = toy_runner(config)
    runner.message_hub.update_info('where', tmp_path)  # a Path is no plain value
    runner.train()
    assert runner.epoch == 2
    assert not list(tmp_path.glob('student_*'))


def test_plain_models_and_runs_without_checkpoints_are_left_alone(config: Config, tmp_path: Path) -> None:
    cfg = plain_run_config(str(tmp_path / 'plain'))
    toy_runner(cfg, custom_hooks=HOOKS, train_cfg__max_epochs=1).train()
    assert (tmp_path / 'plain' / 'epoch_1.pth').exists()
    assert not list((tmp_path / 'plain').glob('student_*'))
    toy_runner(config, default_hooks__checkpoint=None, train_cfg__max_epochs=1).train()
    assert not list(tmp_path.glob('*.pth'))


def test_it_runs_after_everything_that_changes_a_checkpoint() -> None:
    assert StudentExportHook.priority == 'LOWEST'
