"""Distillers under mmengine's runner: what is saved, averaged, optimised, resumed and loaded."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.runner import Runner
from torch import Tensor, nn

from dskd_mm.distillers import DSKDDistiller
from dskd_mm.testing import classifier_config, random_batch, random_teacher
from dskd_mm.utils.checkpoint import load_checkpoint_file, load_plain_model
from support import distiller_run_config, toy_runner


@pytest.fixture(scope='module')
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    # Eight steps are too few for the warm-up that DKD's weights ask for.
    return distiller_run_config(str(tmp_path_factory.mktemp('run')), imitation=dict(type='dskd_mm.KDLoss'))


@pytest.fixture(scope='module')
def trained(config: Config) -> Runner:
    """The uninterrupted run that others are compared with."""
    runner = toy_runner(config)
    runner.train()
    return runner


def saved_state(work_dir: str | Path, name: str = 'epoch_2.pth') -> dict[str, Tensor]:
    return load_checkpoint_file(str(Path(work_dir) / name))['state_dict']


def assert_equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    unequal = [key for key in left if not torch.equal(left[key], right[key])]
    assert not unequal


def storages(module: nn.Module) -> set[int]:
    return {tensor.untyped_storage().data_ptr() for tensor in [*module.parameters(), *module.buffers()] if tensor.numel()}


def test_training_reports_all_losses_and_learns_something(trained: Runner) -> None:
    scalars = {key for key in trained.message_hub.log_scalars if key.startswith('train/')}
    expected = {'loss', 'loss_dskd_diff', 'loss_dskd_lsh', 'loss_dskd_anchor', 'loss_dskd_logit', 'dskd_bits', 'dskd_std'}
    assert {f'train/{key}' for key in expected} <= scalars
    losses = trained.message_hub.get_scalar('train/loss_dskd_anchor').data[0]
    assert losses[-1] < losses[0]


def test_the_teacher_is_in_nothing_that_trains_or_saves(trained: Runner, config: Config) -> None:
    distiller = trained.model
    assert distiller.teacher.model is not None
    prefixes = {key.split('.')[0] for key in saved_state(config.work_dir)}
    modules = {'student', 'align', 'lsh', 'lsh_share', 'diffusion'}
    assert modules <= prefixes <= modules | {'feature_std', 'iteration', 'noise_seed'}
    assert distiller.state_dict().keys() == saved_state(config.work_dir).keys()
    optimised = {id(p) for group in trained.optim_wrapper.param_groups for p in group['params']}
    assert optimised == {id(p) for p in distiller.parameters()}
    assert not storages(distiller) & storages(distiller.teacher.model)
    assert not any('teacher' in name for name, _ in distiller.named_modules())
    assert not any(p.requires_grad for p in distiller.teacher.model.parameters())
    assert not any(module.training for module in distiller.teacher.model.modules())


def test_every_parameter_gets_a_gradient_from_a_step(config: Config) -> None:
    distiller = MMENGINE_MODELS.build(config.model)
    sum(value for key, value in distiller.loss(*random_batch()).items() if 'loss' in key).backward()
    assert [name for name, p in distiller.named_parameters() if p.grad is None] == []


def test_a_copy_shares_the_teacher(config: Config) -> None:
    distiller = MMENGINE_MODELS.build(config.model)
    distiller.load_teacher()
    twin = copy.deepcopy(distiller)
    assert twin.teacher is distiller.teacher
    assert not storages(twin) & storages(distiller)
    assert twin.loss(*random_batch()).keys() == distiller.loss(*random_batch()).keys()


def test_the_teacher_follows_a_wrapper_that_is_cast(config: Config) -> None:
    distiller = MMENGINE_MODELS.build(config.model)
    distiller.load_teacher()
    nn.ModuleDict(dict(inner=distiller)).double()
    assert {p.dtype for p in distiller.teacher.model.parameters()} == {torch.float64}
    assert {classifier.weight.dtype for classifier in distiller.teacher.classifiers} == {torch.float64}
    distiller.float()
    assert {p.dtype for p in distiller.teacher.model.parameters()} == {torch.float32}


def test_one_seed_gives_one_training(trained: Runner, config: Config, tmp_path: Path) -> None:
    runner = toy_runner(config, work_dir=str(tmp_path))
    runner.train()
    assert_equal(saved_state(tmp_path), saved_state(config.work_dir))
    other = toy_runner(config, work_dir=str(tmp_path / 'other'), randomness__seed=1)
    other.train()
    assert not torch.equal(other.model.student.head.fc.weight, runner.model.student.head.fc.weight)


@pytest.mark.parametrize('averaging', [None, False, True], ids=['plain', 'ema', 'ema_buffers'])
def test_a_resumed_run_equals_an_uninterrupted_one(config: Config, tmp_path: Path, averaging: bool | None) -> None:
    options: dict[str, Any] = {}
    if averaging is not None:
        options['custom_hooks'] = [dict(type='EMAHook', momentum=0.1, update_buffers=averaging)]
    whole = toy_runner(config, work_dir=str(tmp_path / 'whole'), **options)
    whole.train()
    part = toy_runner(config, work_dir=str(tmp_path / 'part'), train_cfg__max_epochs=1, **options)
    part.train()
    resumed = toy_runner(config, work_dir=str(tmp_path / 'part'), resume=True, **options)
    resumed.train()
    assert resumed.epoch == 2 and resumed.iter == 8
    left, right = (load_checkpoint_file(str(tmp_path / name / 'epoch_2.pth')) for name in ('whole', 'part'))
    assert_equal(left['state_dict'], right['state_dict'])
    assert_equal(whole.model.state_dict(), resumed.model.state_dict())
    assert int(whole.model.iteration) == 8
    assert int(whole.model.lsh.num_batches) == 8 and bool(whole.model.lsh.center.any())
    for mine, theirs in zip(left['optimizer']['state'].values(), right['optimizer']['state'].values(), strict=True):
        assert torch.equal(mine['momentum_buffer'], theirs['momentum_buffer'])
    if averaging is not None:
        assert_equal(left['ema_state_dict'], right['ema_state_dict'])


@pytest.mark.parametrize('resume', [False, True])
def test_iteration_and_seed_belong_to_resuming(config: Config, tmp_path: Path, resume: bool) -> None:
    options: dict[str, Any] = dict(work_dir=str(tmp_path), model__warmup=1000)
    first = toy_runner(config, train_cfg__max_epochs=1, model__noise_seed=1, **options)
    first.train()
    last = str(tmp_path / 'epoch_1.pth')
    second = toy_runner(config, load_from=last, resume=resume, model__noise_seed=2, **options)
    second.train()
    # Two epochs of four iterations; a resumed run has one of them left.
    assert (int(second.model.iteration), int(second.model.noise_seed)) == (8, 1 if resume else 2)
    assert int(second.model.lsh.num_batches) == (8 if resume else 12)  # what was learned comes with the weights
    warmup = second.message_hub.get_scalar('train/distill_warmup').data[0]
    assert warmup[-1] == pytest.approx(8 / 1000)


def test_the_noise_sequence_goes_on_after_resuming(config: Config) -> None:
    distiller = MMENGINE_MODELS.build(config.model)

    def draw(model: DSKDDistiller) -> Tensor:
        return torch.randn(4, generator=model.noise_generator(torch.device('cpu')))

    first = draw(distiller)
    assert torch.equal(draw(distiller), first)
    distiller.loss(*random_batch())
    second = draw(distiller)
    assert not torch.equal(first, second)
    twin = MMENGINE_MODELS.build(config.model)
    draw(twin)  # the clock was read before the checkpoint came
    twin.load_state_dict(distiller.state_dict())
    assert torch.equal(draw(twin), second)


@pytest.mark.parametrize('update_buffers', [False, True])
@pytest.mark.parametrize('method', ['DSKD', 'LSHFM'])
def test_a_projected_hash_is_averaged_and_knows_the_teachers_classifier(
    tmp_path: Path, method: str, update_buffers: bool
) -> None:
    """Averaging pairs buffers by their place, and begins before the teacher is loaded."""
    config = distiller_run_config(str(tmp_path), lsh=dict(project='null'))
    config.model.type = f'dskd_mm.{method}Distiller'
    hook = dict(type='EMAHook', momentum=0.5, update_buffers=update_buffers)
    runner = toy_runner(config, work_dir=str(tmp_path), custom_hooks=[hook], train_cfg__max_epochs=1)
    runner.train()
    weight = runner.model.teacher.classifiers[0].weight
    assert runner.model.lsh.null.abs().max() > 0.1
    torch.testing.assert_close((weight - weight.mean(dim=0)) @ runner.model.lsh.null, torch.zeros_like(weight))


@pytest.mark.parametrize('update_buffers', [False, True])
def test_averaged_models_hold_no_teacher(config: Config, tmp_path: Path, update_buffers: bool) -> None:
    hook = dict(type='EMAHook', momentum=0.5, update_buffers=update_buffers)
    export = dict(type='dskd_mm.StudentExportHook')
    runner = toy_runner(config, work_dir=str(tmp_path), custom_hooks=[hook, export], train_cfg__max_epochs=1)
    runner.train()
    averaged = next(hook.ema_model for hook in runner.hooks if hasattr(hook, 'ema_model'))
    assert averaged.module.teacher is runner.model.teacher
    assert not storages(averaged) & storages(runner.model.teacher.model)
    checkpoint = load_checkpoint_file(str(tmp_path / 'epoch_1.pth'))
    assert not any('teacher' in key for key in checkpoint['ema_state_dict'])
    # The student beside the checkpoint is the averaged one, not the one that trains on.
    exported = saved_state(tmp_path, 'student_last.pth')
    name = 'head.fc.weight'
    assert torch.equal(exported[name], averaged.module.student.state_dict()[name])
    assert not torch.equal(exported[name], runner.model.student.state_dict()[name])


def test_a_plain_student_warms_a_distiller_up(config: Config, tmp_path: Path) -> None:
    student = MMENGINE_MODELS.build(classifier_config())
    path = str(tmp_path / 'student.pth')
    torch.save(dict(state_dict=student.state_dict()), path)
    runner = toy_runner(config, work_dir=str(tmp_path), load_from=path)
    runner.load_or_resume()
    assert_equal(runner.model.student.state_dict(), student.state_dict())


def test_a_checkpoint_of_another_architecture_is_refused(config: Config, tmp_path: Path) -> None:
    path = str(tmp_path / 'other.pth')
    torch.save(dict(state_dict=nn.Sequential(nn.Linear(2, 2)).state_dict()), path)
    runner = toy_runner(config, work_dir=str(tmp_path), load_from=path)
    with pytest.raises(ValueError, match=r'ImageClassifier student.*none of its 2 keys \(0.weight.*another architecture'):
        runner.load_or_resume()


def test_predictions_are_the_students_and_need_no_teacher(config: Config, trained: Runner, tmp_path: Path) -> None:
    model = copy.deepcopy(config.model)
    model.teacher.checkpoint = str(tmp_path / 'gone.pth')
    distiller = MMENGINE_MODELS.build(model).eval()
    distiller.load_state_dict(saved_state(config.work_dir))
    plain = MMENGINE_MODELS.build(classifier_config()).eval()
    load_plain_model(plain, str(Path(config.work_dir) / 'epoch_2.pth'))
    images = torch.randint(256, (3, 3, 16, 16), dtype=torch.uint8)
    data = dict(inputs=list(images), data_samples=[sample.clone() for sample in random_batch(3)[1]])
    for step in ('val_step', 'test_step'):
        for mine, theirs in zip(getattr(distiller, step)(data), getattr(plain, step)(data), strict=True):
            assert torch.equal(mine.pred_score, theirs.pred_score)
    batch = plain.data_preprocessor(data)['inputs']
    assert torch.equal(distiller(batch, mode='tensor'), plain(batch, mode='tensor'))
    assert not distiller.teacher.is_loaded


def test_the_backbone_of_the_teacher_is_not_built_when_it_does_not_run(tmp_path: Path) -> None:
    runner = toy_runner(
        distiller_run_config(str(tmp_path), prior='student', target='label', loss_weights=dict(logit=0)),
        train_cfg__max_epochs=1,
    )
    runner.train()
    assert runner.model.teacher.is_loaded and runner.model.teacher.model is None


@pytest.mark.parametrize('options', [dict(), dict(detach=False, sampler=dict(noise='adapter'))], ids=['default', 'adapter'])
def test_bfloat16_trains(tmp_path: Path, options: dict) -> None:
    config = distiller_run_config(str(tmp_path), prior='teacher', **options)
    runner = toy_runner(config, optim_wrapper__type='dskd_mm.BF16OptimWrapper', train_cfg__max_epochs=1)
    runner.train()
    assert all(bool(torch.isfinite(value).all()) for value in runner.model.state_dict().values())
    assert {p.dtype for p in runner.model.parameters()} == {torch.float32}


@pytest.mark.parametrize('to_rgb', [True, False], ids=['same_order', 'other_order'])
def test_the_teacher_sees_its_own_normalisation(tmp_path: Path, to_rgb: bool) -> None:
    teacher = random_teacher(str(tmp_path))
    teacher['config']['model']['data_preprocessor'].update(mean=[90.0, 100.0, 115.0], std=[40.0, 55.0, 70.0], to_rgb=to_rgb)
    config = distiller_run_config(str(tmp_path), teacher=teacher)
    distiller = MMENGINE_MODELS.build(config.model)
    distiller.load_teacher()
    seen: list[Tensor] = []
    distiller.teacher.model.backbone.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    images = torch.randint(256, (3, 3, 16, 16), dtype=torch.uint8)
    data = dict(inputs=list(images), data_samples=random_batch(3)[1])
    distiller.loss(**distiller.data_preprocessor(data, training=True))
    expected = distiller.teacher.model.data_preprocessor(dict(inputs=list(images)))['inputs']
    torch.testing.assert_close(seen[0], expected, rtol=0, atol=2e-6)
    assert not torch.allclose(expected, distiller.data_preprocessor(dict(inputs=list(images)))['inputs'], atol=0.1)


def test_a_teacher_of_the_same_normalisation_gets_the_batch_itself(config: Config) -> None:
    distiller = MMENGINE_MODELS.build(config.model)
    distiller.load_teacher()
    images = random_batch()[0]
    assert distiller.teacher.input_adapter(images) is images


@pytest.mark.soak  # tracing takes a minute
def test_a_compiled_step_is_the_plain_one(config: Config, trained: Runner, tmp_path: Path) -> None:
    runner = toy_runner(config, work_dir=str(tmp_path), compile=dict(backend='eager'), train_cfg__max_epochs=1)
    runner.train()
    expected, compiled = saved_state(config.work_dir, 'epoch_1.pth'), saved_state(tmp_path, 'epoch_1.pth')
    for key, value in expected.items():
        torch.testing.assert_close(compiled[key], value, rtol=1e-3, atol=1e-4, msg=lambda text, key=key: f'{key}: {text}')
