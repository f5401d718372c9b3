"""The command-line tools, on runs of a second."""

import copy
import json
import os
import shutil
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mmpretrain
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import DATASETS
from mmengine.registry import MODELS as MMENGINE_MODELS
from torch import Tensor, nn

from dskd_mm.cli import test, train
from dskd_mm.cli.common import build_runner, read_config
from dskd_mm.distillers import DSKDDistiller
from dskd_mm.optim import SLOW_BF16
from dskd_mm.report import RunLog
from dskd_mm.testing import classifier_config, random_teacher
from dskd_mm.utils.checkpoint import load_checkpoint_file, load_plain_model
from dskd_mm.utils.config import is_distiller_config, load_config, model_config, student_config
from support import distiller_run_config, free_port, plain_run_config, predictions, run_process, run_script, toy_runner

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / 'tools'


def assert_same_predictions(left: Path, right: Path) -> None:
    for mine, theirs in zip(predictions(left), predictions(right), strict=True):
        assert mine['sample_idx'] == theirs['sample_idx']
        assert torch.equal(mine['pred_score'], theirs['pred_score'])


@pytest.fixture(scope='module')
def run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A distillation by tools/train.py whose teacher is gone afterwards."""
    folder = tmp_path_factory.mktemp('run')
    teacher_dir = folder / 'teacher'
    teacher_dir.mkdir()
    teacher = random_teacher(str(teacher_dir))
    Config(teacher['config']).dump(str(teacher_dir / 'teacher.py'))
    teacher['config'] = str(teacher_dir / 'teacher.py')
    work_dir = folder / 'work'
    work_dir.mkdir()
    config, plain = folder / 'distiller.py', folder / 'plain.py'
    distiller_run_config(str(work_dir), teacher).dump(str(config))
    plain_run_config(str(work_dir)).dump(str(plain))
    run_process(sys.executable, TOOLS / 'train.py', config)
    shutil.rmtree(teacher_dir)
    paths = dict(folder=folder, work_dir=work_dir, config=config, plain=plain)
    return {
        **paths,
        'checkpoint': work_dir / 'epoch_2.pth',
        'student': work_dir / 'student_last.pth',
        'reference': folder / 'reference.pkl',
        'metrics': folder / 'reference.json',
    }


@pytest.fixture(scope='module')
def tested(run: dict[str, Path]) -> dict[str, Path]:
    """The distiller's checkpoint, tested with the distiller's config."""
    run_script(TOOLS / 'test.py', run['config'], run['checkpoint'], '--out', run['reference'])
    run_script(TOOLS / 'test.py', run['config'], run['checkpoint'], '--out', run['metrics'], '--out-item', 'metrics')
    return run


def test_training_exports_the_student_without_being_asked(run: dict[str, Path]) -> None:
    assert run['student'].exists() and (run['work_dir'] / 'student_best.pth').exists()
    assert not (run['folder'] / 'teacher').exists()


def test_testing_leaves_the_config_of_the_training(tested: dict[str, Path]) -> None:
    assert is_distiller_config(Config.fromfile(tested['work_dir'] / 'distiller.py')), (
        'of which a report tells how to train again'
    )
    assert RunLog.read(tested['work_dir']).config == tested['work_dir'] / 'distiller.py'


def test_testing_gives_the_accuracy_of_the_last_validation(tested: dict[str, Path]) -> None:
    (log,) = (tested['work_dir']).glob('*/vis_data/scalars.json')
    validations = [line for line in map(json.loads, log.read_text().splitlines()) if 'accuracy/top1' in line]
    assert json.loads(tested['metrics'].read_text()) == {'accuracy/top1': validations[-1]['accuracy/top1']}
    assert len(predictions(tested['reference'])) == 30


@pytest.mark.parametrize(('config', 'checkpoint'), [('config', 'student'), ('plain', 'student'), ('plain', 'checkpoint')])
def test_every_pair_of_config_and_checkpoint_predicts_the_same(
    tested: dict[str, Path], tmp_path: Path, config: str, checkpoint: str
) -> None:
    out = tmp_path / 'out.pkl'
    run_script(TOOLS / 'test.py', tested[config], tested[checkpoint], '--out', out, '--work-dir', tmp_path)
    assert_same_predictions(out, tested['reference'])


def test_the_host_itself_predicts_the_same_from_the_exported_student(tested: dict[str, Path]) -> None:
    cfg = Config.fromfile(tested['plain'])
    model = mmpretrain.get_model(cfg, pretrained=str(tested['student']), device='cpu').eval()
    with torch.no_grad():
        scores = model(preprocessed_images(cfg, model), mode='tensor').softmax(dim=1)
    expected = torch.stack([sample['pred_score'] for sample in predictions(tested['reference'])])
    torch.testing.assert_close(scores, expected)


def preprocessed_images(cfg: Config, model: nn.Module) -> Tensor:
    """All images of the test part as one preprocessed batch."""
    options = copy.deepcopy(cfg.test_dataloader.dataset)
    options.pipeline = []
    images = [torch.from_numpy(item['img']).permute(2, 0, 1) for item in DATASETS.build(options)]
    return model.data_preprocessor(dict(inputs=images))['inputs']


def test_distributed_testing_gives_the_same_accuracy(tested: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / 'metrics.json'
    arguments = ['--out', out, '--out-item', 'metrics', '--work-dir', tmp_path]
    run_process(TOOLS / 'dist_test.sh', tested['config'], tested['checkpoint'], 2, *arguments, PORT=free_port())
    assert json.loads(out.read_text()) == json.loads(tested['metrics'].read_text())


def test_test_time_augmentation_averages_mirrored_images(tested: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / 'out.pkl'
    run_script(TOOLS / 'test.py', tested['config'], tested['checkpoint'], '--out', out, '--tta', '--work-dir', tmp_path)
    model = MMENGINE_MODELS.build(classifier_config()).eval()
    load_plain_model(model, str(tested['student']))
    batch = preprocessed_images(Config.fromfile(tested['plain']), model)
    with torch.no_grad():
        scores = (model(batch).softmax(dim=1) + model(batch.flip(3)).softmax(dim=1)) / 2
    torch.testing.assert_close(torch.stack([sample['pred_score'] for sample in predictions(out)]), scores)


def test_the_configs_own_test_time_augmentation_is_used(run: dict[str, Path]) -> None:
    cfg = Config.fromfile(run['plain'])
    cfg.tta_model = dict(type='MyTTA')
    cfg.tta_pipeline = [dict(type='MyPipeline')]
    test.enable_tta(cfg)
    assert cfg.model.type == 'MyTTA' and cfg.model.module.type == 'ImageClassifier'
    assert cfg.test_dataloader.dataset.pipeline == [dict(type='MyPipeline')]


def test_all_parts_of_joined_data_are_augmented(run: dict[str, Path]) -> None:
    cfg = Config.fromfile(run['plain'])
    parts = [copy.deepcopy(cfg.test_dataloader.dataset) for _ in range(2)]
    cfg.test_dataloader.dataset = dict(type='ConcatDataset', datasets=parts)
    test.enable_tta(cfg)
    steps = [part.pipeline[-1].type for part in cfg.test_dataloader.dataset.datasets]
    assert steps == ['TestTimeAug'] * 2 and 'pipeline' not in cfg.test_dataloader.dataset


def test_the_preprocessor_of_a_model_stays_its_own_under_augmentation(run: dict[str, Path]) -> None:
    cfg = Config.fromfile(run['plain'])
    cfg.data_preprocessor = dict(mean=[1.0])
    own = copy.deepcopy(cfg.model.data_preprocessor)
    test.enable_tta(cfg)
    # The wrapper would force the runner's preprocessor on a model that has its own.
    assert cfg.model.module.data_preprocessor == own and cfg.data_preprocessor is None


def test_pictures_and_mixed_precision(
    tested: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    let_this_cpu_have('', tmp_path, monkeypatch)
    arguments = ['--show-dir', tmp_path / 'pictures', '--interval', 10, '--amp', '--work-dir', tmp_path]
    run_script(TOOLS / 'test.py', tested['config'], tested['student'], *arguments)
    assert len(list((tmp_path / 'pictures').rglob('*.png'))) == 3
    assert SLOW_BF16 in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(('flags', 'expected'), [('amx_bf16', True), ('avx512f', False)])
def test_mixed_precision_of_testing(
    tested: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str, expected: bool
) -> None:
    let_this_cpu_have(flags, tmp_path, monkeypatch)
    args = test.parse_args([str(tested['config']), str(tested['student']), '--amp'])
    assert test.merge_args(Config.fromfile(args.config), args).test_cfg.fp16 is expected


def drop_hook(cfg: Config) -> None:
    cfg.default_hooks.visualization = None


def drop_test_part(cfg: Config) -> None:
    cfg.test_dataloader = cfg.test_evaluator = None


def of_another_host(cfg: Config) -> None:
    cfg.model.student._scope_ = 'mmengine'


def widen(cfg: Config) -> None:
    cfg.model.student = classifier_config(width=6)


@pytest.mark.parametrize(
    ('spoil', 'arguments', 'words'),
    [
        (drop_hook, ['--show-dir', 'x'], ['--show-dir expect one of the hooks', 'VisualizationHook', 'but got None']),
        (drop_test_part, [], ["expects ['test_dataloader', 'test_evaluator']", 'there is none']),
        (of_another_host, ['--tta'], ['tta_model and tta_pipeline', 'is of mmengine']),
        (widen, [], ['epoch_2.pth', 'does not fit the ImageClassifier', 'of another shape', 'architecture']),
    ],
    ids=['no_hook', 'no_test_part', 'no_tta', 'other_width'],
)
def test_what_cannot_be_tested_is_explained(
    run: dict[str, Path], tmp_path: Path, spoil: Callable[[Config], None], arguments: list[str], words: list[str]
) -> None:
    cfg = Config.fromfile(run['config'])
    spoil(cfg)
    cfg.dump(str(tmp_path / 'spoilt.py'))
    with pytest.raises(SystemExit) as caught:
        run_script(TOOLS / 'test.py', tmp_path / 'spoilt.py', run['checkpoint'], '--work-dir', tmp_path, *arguments)
    assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [(['--out', 'x.json'], '--out expects a .pkl file'), (['--out-item', 'pred'], '--out-item expects --out')],
    ids=['wrong_suffix', 'no_file'],
)
def test_a_wrong_output_is_refused_before_any_work(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        run_script(TOOLS / 'test.py', 'no.py', 'no.pth', *arguments)
    assert words in capsys.readouterr().err


@pytest.mark.parametrize(
    ('hook', 'expected'),
    [
        ('DetVisualizationHook', dict(draw=True, show=False, wait_time=1, interval=5, test_out_dir='pictures')),
        ('SegVisualizationHook', dict(draw=True, show=False, wait_time=1, interval=5)),
    ],
)
def test_the_hooks_of_other_hosts_draw_as_well(hook: str, expected: dict[str, Any]) -> None:
    cfg = Config(dict(default_hooks=dict(visualization=dict(type=hook)), visualizer=dict(type='V')))
    args = Namespace(show=False, show_dir='pictures', wait_time=1, interval=5, config='c.py')
    test.enable_drawing(cfg, args)
    assert cfg.default_hooks.visualization == dict(type=hook, **expected)
    assert cfg.visualizer.get('save_dir') == (None if 'Det' in hook else 'pictures')


def test_the_converter_writes_the_student_and_its_config(run: dict[str, Path], tmp_path: Path) -> None:
    target = tmp_path / 'student.pth'
    run_script(TOOLS / 'model_converters/export_student.py', run['checkpoint'], target, '--config', run['config'])
    exported, expected = load_checkpoint_file(str(target)), load_checkpoint_file(str(run['student']))
    assert exported['state_dict'].keys() == expected['state_dict'].keys()
    assert all(torch.equal(exported['state_dict'][key], value) for key, value in expected['state_dict'].items())
    # The host builds the model from the config beside it, or from the one inside.
    for cfg in (Config.fromfile(tmp_path / 'student.py'), Config.fromstring(exported['meta']['cfg'], '.py')):
        MMENGINE_MODELS.build(model_config(cfg)).load_state_dict(exported['state_dict'], strict=True)


@pytest.fixture
def trainable(tmp_path: Path) -> Path:
    """A distiller's config with its teacher still there."""
    distiller_run_config(str(tmp_path)).dump(str(tmp_path / 'config.py'))
    return tmp_path / 'config.py'


def scalars(work_dir: Path) -> list[dict]:
    log = max(work_dir.glob('*/vis_data/scalars.json'))
    return [json.loads(line) for line in log.read_text().splitlines()]


def let_this_cpu_have(flags: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / 'cpuinfo').write_text(f'flags : fpu {flags} avx2\n')
    monkeypatch.setattr('dskd_mm.optim.bf16.CPU_INFO', folder / 'cpuinfo')
    monkeypatch.setattr('dskd_mm.optim.bf16.get_device', lambda: 'cpu')


def test_the_switches_of_training(
    trainable: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    let_this_cpu_have('', tmp_path, monkeypatch)
    arguments = ['--no-validate', '--auto-scale-lr', '--amp', '--work-dir', tmp_path / 'work']
    run_script(TOOLS / 'train.py', trainable, *arguments, '--cfg-options', 'train_cfg.max_epochs=1', 'experiment_name=switches')
    lines = scalars(tmp_path / 'work')
    assert len(lines) == 4 and not any('accuracy/top1' in line for line in lines)
    assert lines[0]['lr'] == pytest.approx(0.05 * 8 / 16)
    config = Config.fromfile(tmp_path / 'work' / 'config.py')
    assert config.optim_wrapper.type == 'OptimWrapper' and SLOW_BF16 in capsys.readouterr().out.splitlines()
    assert config.get('custom_hooks') is None and (tmp_path / 'work' / 'student_last.pth').is_file()


def test_learning_rates_that_decay_over_layers_are_those_of_the_plain_student(tmp_path: Path) -> None:
    work_dir = tmp_path / 'work'
    cfg = distiller_run_config(str(tmp_path), random_teacher(str(tmp_path), kind='vit'), dict(kind='vit'))
    cfg.optim_wrapper = dict(
        optimizer=dict(type='SGD', lr=0.05, weight_decay=1e-4),
        constructor='LearningRateDecayOptimWrapperConstructor',
        paramwise_cfg=dict(layer_decay_rate=0.5),
    )
    cfg.dump(str(tmp_path / 'config.py'))
    for epochs in (1, 2):  # the second resumes the first
        options = ['--resume', '--cfg-options', f'train_cfg.max_epochs={epochs}', f'experiment_name=part{epochs}']
        run_script(TOOLS / 'train.py', tmp_path / 'config.py', '--work-dir', work_dir, *options)
    groups = load_checkpoint_file(str(work_dir / 'epoch_2.pth'))['optimizer']['param_groups']
    found = {group['param_name']: group['lr'] for group in groups}
    assert found['student.backbone.patch_embed.projection.weight'] == pytest.approx(0.05 * 0.5**3)
    assert found['student.backbone.layers.1.ffn.layers.1.weight'] == pytest.approx(0.05 * 0.5)
    assert found['student.head.layers.head.weight'] == pytest.approx(0.05)
    own = [lr for name, lr in found.items() if not name.startswith('student.')]
    assert own and own == pytest.approx([0.05] * len(own))


def test_constructors_that_go_by_names_see_the_student(trainable: Path, run: dict[str, Path], tmp_path: Path) -> None:
    own = dict(constructor='LearningRateDecayOptimizerConstructor', paramwise_cfg=dict(decay_rate=0.7, num_layers=6))
    for path, kind in ((trainable, 'dskd_mm.StudentOptimWrapperConstructor'), (run['plain'], own['constructor'])):
        cfg = Config.fromfile(path)
        cfg.optim_wrapper.update(own)
        cfg.dump(str(tmp_path / 'decayed.py'))
        found = merged(tmp_path / 'decayed.py')
        assert found.optim_wrapper.constructor == kind
        exported = student_config(found).optim_wrapper
        assert (exported.constructor, exported.paramwise_cfg) == tuple(own.values()), 'the student knows nothing of it'


def test_training_resumes_from_the_latest_checkpoint(run: dict[str, Path], trainable: Path, tmp_path: Path) -> None:
    work_dir = tmp_path / 'work'
    options = ['--cfg-options', 'train_cfg.max_epochs=1', 'experiment_name=part1']
    run_script(TOOLS / 'train.py', trainable, '--work-dir', work_dir, *options)
    run_script(TOOLS / 'train.py', trainable, '--work-dir', work_dir, '--resume', '--cfg-options', 'experiment_name=part2')
    # The run of the fixture had the same seed and a teacher of the same weights.
    left, right = (load_checkpoint_file(str(path))['state_dict'] for path in (run['checkpoint'], work_dir / 'epoch_2.pth'))
    assert left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)


def merged(path: Path, *arguments: str) -> Config:
    args = train.parse_args([str(path), *arguments])
    return train.merge_args(read_config(args), args)


@pytest.mark.parametrize('named', [[], ['StudentExportHook'], ['CheckFiniteHook', 'ResumeHook']])
def test_hooks_are_added_once(trainable: Path, tmp_path: Path, named: list[str]) -> None:
    cfg = merged(trainable)
    cfg.custom_hooks = [dict(type=f'dskd_mm.{name}') for name in named]
    runner = toy_runner(cfg, work_dir=str(tmp_path))
    train.add_hooks(runner)
    found = [type(hook).__name__ for hook in runner.hooks]
    assert [found.count(name) for name in ('ResumeHook', 'CheckFiniteHook', 'StudentExportHook')] == [1, 1, 1]


def test_resuming_names_a_checkpoint_or_finds_the_latest(trainable: Path) -> None:
    cfg = merged(trainable, '--resume', 'epoch_1.pth')
    assert (cfg.resume, cfg.load_from) == (True, 'epoch_1.pth')
    cfg = merged(trainable, '--resume', '--cfg-options', 'load_from=student.pth')
    assert cfg.resume and cfg.load_from == 'student.pth'  # --cfg-options has the last word
    assert merged(trainable).get('resume', False) is False


def test_weights_to_begin_with_are_taken_where_there_is_nothing_to_resume(trainable: Path, tmp_path: Path) -> None:
    arguments = ['--resume', '--work-dir', str(tmp_path / 'work')]
    path = tmp_path / 'begins.py'
    path.write_text(f"_base_ = {str(trainable)!r}\nload_from = 'pretrained.pth'\n")
    cfg = merged(path, *arguments)
    assert (cfg.resume, cfg.load_from) == (False, 'pretrained.pth')
    (tmp_path / 'work').mkdir()
    (tmp_path / 'work/epoch_1.pth').touch()
    cfg = merged(path, *arguments)
    assert (cfg.resume, cfg.load_from) == (True, None)
    out_dir = ['--cfg-options', f'default_hooks.checkpoint.out_dir={tmp_path / "elsewhere"}', f'work_dir={tmp_path / "new"}']
    assert merged(path, '--resume', *out_dir).load_from == 'pretrained.pth'
    (tmp_path / 'elsewhere/new').mkdir(parents=True)
    (tmp_path / 'elsewhere/new/iter_7.pth').touch()
    assert merged(path, '--resume', *out_dir).load_from is None


def test_work_dirs_are_named_after_configs(trainable: Path, tmp_path: Path) -> None:
    cfg = Config.fromfile(trainable)
    cfg.work_dir = None
    cfg.dump(str(tmp_path / 'nameless.py'))
    assert merged(tmp_path / 'nameless.py').work_dir == os.path.join('work_dirs', 'nameless')
    assert merged(trainable).work_dir == str(tmp_path)
    assert merged(trainable, '--work-dir', 'x').work_dir == 'x'
    assert merged(trainable, '--cfg-options', 'work_dir=y').work_dir == 'y'


def test_another_method_is_put_over_a_config(trainable: Path, tmp_path: Path) -> None:
    """The work dir is named after both, and the whole config that is left there trains in the host's own script."""
    assert merged(trainable, '--method', 'kd').model.type == 'dskd_mm.ConfigurableDistiller'
    cfg = Config.fromfile(trainable)
    cfg.work_dir = None
    cfg.dump(str(tmp_path / 'nameless.py'))
    assert merged(tmp_path / 'nameless.py', '--method', 'vkd').work_dir == os.path.join('work_dirs', 'nameless_vkd')

    script = Path(mmpretrain.__file__).parent / '.mim' / 'tools' / 'train.py'
    options = ['--cfg-options', 'train_cfg.max_epochs=1', 'experiment_name=method']
    run_script(TOOLS / 'train.py', trainable, '--method', 'vkd', '--work-dir', tmp_path / 'ours', *options)
    whole = tmp_path / 'ours' / 'config.py'
    assert Config.fromfile(whole).model.type == 'dskd_mm.VkDDistiller'
    run_process(sys.executable, script, whole, '--work-dir', tmp_path / 'theirs', '--no-persistent-workers', '--no-pin-memory')
    for name in ('ours', 'theirs'):
        assert any(key.startswith('loss_vkd') for line in scalars(tmp_path / name) for key in line)


def test_a_printed_config_is_whole(trainable: Path, capsys: pytest.CaptureFixture) -> None:
    run_script(TOOLS / 'misc/print_config.py', trainable, '--method', 'kd', '--cfg-options', 'model.warmup=7')
    printed = Config.fromstring(capsys.readouterr().out, '.py')
    assert printed.model.type == 'dskd_mm.ConfigurableDistiller' and printed.model.warmup == 7
    assert printed.train_dataloader == Config.fromfile(trainable).train_dataloader


@pytest.mark.parametrize(('flags', 'expected'), [('avx512_bf16', 'dskd_mm.BF16OptimWrapper'), ('', 'OptimWrapper')])
def test_mixed_precision_replaces_that_of_the_config(
    trainable: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str, expected: str
) -> None:
    let_this_cpu_have(flags, tmp_path, monkeypatch)
    cfg = Config.fromfile(trainable)
    cfg.optim_wrapper.update(type='AmpOptimWrapper', loss_scale='dynamic', dtype='float16')
    cfg.dump(str(tmp_path / 'amp.py'))
    wrapper = merged(tmp_path / 'amp.py', '--amp').optim_wrapper
    assert wrapper.type == expected and set(wrapper) == {'type', 'optimizer'}
    monkeypatch.setattr('dskd_mm.optim.bf16.get_device', lambda: 'cuda')
    wrapper = merged(tmp_path / 'amp.py', '--amp').optim_wrapper
    assert (wrapper.type, wrapper.dtype) == ('AmpOptimWrapper', 'float16')


def test_scaling_the_learning_rate_needs_a_batch_size(trainable: Path, tmp_path: Path) -> None:
    cfg = Config.fromfile(trainable)
    cfg.auto_scale_lr = None
    cfg.dump(str(tmp_path / 'fixed.py'))
    with pytest.raises(ValueError, match=r'--auto-scale-lr expects.*base_batch_size.*fixed.py'):
        merged(tmp_path / 'fixed.py', '--auto-scale-lr')


def test_several_processes_on_cpus_need_torchrun_or_slurm() -> None:
    if torch.cuda.is_available():
        pytest.skip('there is an accelerator')
    with pytest.raises(ValueError, match=r"launcher='pytorch' .*or 'slurm' .*, but got 'mpi'"):
        build_runner(Config(dict(launcher='mpi')))


@pytest.mark.parametrize('tool', ['train', 'test'])
def test_slurm_gets_the_whole_command(tmp_path: Path, tool: str) -> None:
    srun = tmp_path / 'srun'
    srun.write_text('#!/bin/sh\nfor part in "$@"; do echo "$part"; done\n')
    srun.chmod(0o755)
    path = f'{tmp_path}{os.pathsep}{os.environ["PATH"]}'
    variables = dict(GPUS='4', CPUS_PER_TASK='3', SRUN_ARGS='--qos=high --time=1')
    script = TOOLS / f'slurm_{tool}.sh'
    lines = run_process(script, 'part', 'job', 'my config.py', 'there', '--amp', PATH=path, **variables).splitlines()
    separator = lines.index(sys.executable)
    expected = ['--gres=gpu:4', '--ntasks=4', '--ntasks-per-node=4', '--cpus-per-task=3', '--qos=high', '--time=1']
    assert {'-p', 'part', '--job-name=job', *expected} <= set(lines[:separator])
    middle = ['my config.py', '--work-dir', 'there'] if tool == 'train' else ['my config.py', 'there']
    assert lines[separator + 1 :] == ['-u', str(TOOLS / f'{tool}.py'), *middle, '--launcher', 'slurm', '--amp']


@pytest.mark.parametrize('script', ['dist_train.sh', 'dist_test.sh', 'slurm_train.sh', 'slurm_test.sh'])
def test_the_launch_scripts_say_how_they_are_used(script: str) -> None:
    done = subprocess.run([str(TOOLS / script)], capture_output=True, text=True)
    assert done.returncode == 2
    assert f'tools/{script} ' in done.stderr and 'CONFIG' in done.stderr


def small_data(num_images: int) -> str:
    return f"dict(_delete_=True, type='dskd_mm.RandomPatterns', num_images={num_images}, num_classes=10, size=32, pipeline=%s)"


def test_the_hosts_own_script_distils_an_existing_config(tmp_path: Path) -> None:
    """Three lines on top of a config that mmpretrain ships; the data is replaced, as there is none here."""
    existing = 'mmpretrain::resnet/resnet18_8xb16_cifar10.py'
    teacher = MMENGINE_MODELS.build(model_config(load_config(existing)))
    torch.save(dict(state_dict=teacher.state_dict()), tmp_path / 'teacher.pth')
    (tmp_path / 'config.py').write_text(
        f"""
_base_ = '{existing}'
custom_imports = dict(imports=['dskd_mm', 'support.runs'])
model = dict(
    _delete_=True,
    type='dskd_mm.DSKDDistiller',
    student=_base_.model,
    teacher=dict(config='{existing}', checkpoint='{tmp_path}/teacher.pth'),
)
custom_hooks = [dict(type='dskd_mm.StudentExportHook')]
train_dataloader = dict(batch_size=8, num_workers=0, dataset={small_data(16) % '_base_.train_pipeline'})
val_dataloader = dict(batch_size=8, num_workers=0, dataset={small_data(8) % '_base_.test_pipeline'})
train_cfg = dict(max_epochs=1)
log_level = 'WARNING'
"""
    )
    script = Path(mmpretrain.__file__).parent / '.mim' / 'tools' / 'train.py'
    work_dir = tmp_path / 'work'
    run_process(
        sys.executable, script, tmp_path / 'config.py', '--work-dir', work_dir, '--no-persistent-workers', '--no-pin-memory'
    )
    student = load_checkpoint_file(str(work_dir / 'student_last.pth'))
    MMENGINE_MODELS.build(model_config(load_config(existing))).load_state_dict(student['state_dict'], strict=True)
    assert student['meta']['epoch'] == 1


LAZY_PLAIN = """
from mmengine.dataset import DefaultSampler, default_collate
from mmengine.optim import OptimWrapper
from mmpretrain.datasets import PackInputs
from mmpretrain.evaluation import Accuracy
from mmpretrain.models import ClsDataPreprocessor, GlobalAveragePooling, ImageClassifier, LinearClsHead
from torch.optim import SGD

from dskd_mm.backbones import CIFARResNet
from support.runs import RandomPatterns

model = dict(
    type=ImageClassifier,
    data_preprocessor=dict(type=ClsDataPreprocessor, num_classes=5, mean=[120.0] * 3, std=[60.0] * 3),
    backbone=dict(type=CIFARResNet, depth=8, stem_channels=4, base_channels=4),
    neck=dict(type=GlobalAveragePooling),
    head=dict(type=LinearClsHead, num_classes=5, in_channels=16),
)
train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    dataset=dict(type=RandomPatterns, num_images=16, pipeline=[dict(type=PackInputs)]),
    sampler=dict(type=DefaultSampler, shuffle=False),
    collate_fn=dict(type=default_collate),
)
val_dataloader = test_dataloader = train_dataloader
val_evaluator = test_evaluator = dict(type=Accuracy, topk=(1,))
train_cfg = dict(by_epoch=True, max_epochs=1)
val_cfg = dict()
test_cfg = dict()
optim_wrapper = dict(type=OptimWrapper, optimizer=dict(type=SGD, lr=0.05))
default_scope = None
log_level = 'WARNING'
"""
LAZY_DISTILLER = """
from mmengine.config import read_base

with read_base():
    from .plain import *

from dskd_mm.distillers import DSKDDistiller

model = dict(type=DSKDDistiller, student=model, teacher=dict(config='{0}/plain.py', checkpoint='{0}/teacher.pth'))
"""


def test_configs_in_pure_python(tmp_path: Path) -> None:
    (tmp_path / 'plain.py').write_text(LAZY_PLAIN)
    (tmp_path / 'lazy.py').write_text(LAZY_DISTILLER.format(tmp_path))
    cfg = Config.fromfile(tmp_path / 'lazy.py')
    assert cfg.model.type is DSKDDistiller
    teacher = MMENGINE_MODELS.build(Config.fromfile(tmp_path / 'plain.py').model)
    torch.save(dict(state_dict=teacher.state_dict()), tmp_path / 'teacher.pth')
    work_dir = tmp_path / 'work'
    run_script(TOOLS / 'train.py', tmp_path / 'lazy.py', '--work-dir', work_dir)
    (tmp_path / 'teacher.pth').unlink()
    outs = tmp_path / 'a.pkl', tmp_path / 'b.pkl'
    run_script(TOOLS / 'test.py', tmp_path / 'lazy.py', work_dir / 'epoch_1.pth', '--work-dir', tmp_path, '--out', outs[0])
    run_script(
        TOOLS / 'test.py', tmp_path / 'plain.py', work_dir / 'student_last.pth', '--work-dir', tmp_path, '--out', outs[1]
    )
    assert_same_predictions(*outs)
