"""The check before training finds no fault where there is none, says what it found, and costs little."""

import ast
import copy
import logging
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset
from mmengine.logging import MMLogger
from mmengine.model import PretrainedInit
from mmengine.registry import MODELS as MMENGINE_MODELS
from torch import nn

from dskd_mm.preflight import CHEAP, PARTS, Report, check_config, refuse_faults
from dskd_mm.preflight.data import dataset_paths, item_problems, normalizing_steps, pipeline_size, spread
from dskd_mm.preflight.environment import MINIMUM
from dskd_mm.preflight.models import skeleton
from dskd_mm.preflight.step import Step, build_optimizer, report_step, take_step, weight_bytes
from dskd_mm.registry import MODELS
from dskd_mm.testing import classifier_config, random_teacher
from dskd_mm.utils.config import load_config
from dskd_mm.utils.synthetic import synthetic_batch
from support import (
    SCENE_CLASSES,
    detector_run_config,
    distiller_run_config,
    plain_run_config,
    run_script,
    segmentor_run_config,
    write_distiller_files,
    write_scenes,
)

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / 'configs'
# Methods inherit all but the method from DSKD's configs: of each of them one. Students are those of plain configs.
METHODS = sorted(folder.name for folder in CONFIGS.iterdir() if folder.is_dir())
CHECKED = sorted((CONFIGS / 'dskd').glob('*.py')) + sorted((ROOT / 'examples/digits/configs').glob('*.py'))
CHECKED += [min((CONFIGS / name).glob('*.py')) for name in METHODS if name not in ('dskd', '_base_', 'methods')]
FILES_ARE_ABSENT = re.compile(r"Expected data at '|Expected a checkpoint at '|.*could not be downloaded")


def texts(report: Report) -> dict[str, str]:
    return {finding.subject: finding.text for finding in report.findings}


@pytest.mark.parametrize('path', CHECKED, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_config_of_the_project_is_refused(path: Path) -> None:
    """But for data and teachers that are not on this machine."""
    cfg = Config.fromfile(path)
    pytest.importorskip(cfg.default_scope)
    report = check_config(cfg, CHEAP, thorough=False)
    assert [finding for finding in report.faults if not FILES_ARE_ABSENT.match(finding.text)] == []
    found = texts(report)
    assert 'model' in found or {'student', 'teacher', "student's taps", 'method'} <= set(found)


@pytest.fixture
def run(tmp_path: Path) -> Config:
    return distiller_run_config(str(tmp_path))


def test_the_whole_check_of_images(run: Config) -> None:
    before = copy.deepcopy(run.to_dict())
    random = torch.get_rng_state()
    report = check_config(run)
    findings = report.findings
    assert report.faults == []
    assert {finding.part for finding in findings} == set(PARTS)
    found = texts(report)
    assert re.match(r'ImageClassifier, 0.0\d M parameters', found['student'])
    assert found["student's taps"] == 'input of neck, 16 channels, 5 classes (softmax)'
    assert found["teacher's taps"] == 'input of neck, 24 channels, 5 classes (softmax)'
    assert found['method'] == 'DSKDDistiller at ClassificationSite'
    assert found['classes'] == '5, in the data set and in the model'
    assert found['train_dataloader.dataset'] == '32 images' and found['val_dataloader.dataset'] == '30 images'
    assert re.match(r'(\d+) of \1 tensors are in .*teacher.pth$', found['teacher'])
    assert 'loss_dskd_lsh' in found['step']
    assert '8 images of 16x16' in found['memory'] and 'a step with 4 images of 16x16' in found['memory']
    # Neither the config nor what a training draws at random is another for it.
    assert run.to_dict() == before
    assert torch.equal(torch.get_rng_state(), random)


@pytest.mark.parametrize('kind', ['retinanet', 'fcn'])
def test_the_whole_check_of_dense_tasks(kind: str, tmp_path: Path) -> None:
    pytest.importorskip('mmdet' if kind == 'retinanet' else 'mmseg')
    scenes = write_scenes(tmp_path / 'scenes')
    make = detector_run_config if kind == 'retinanet' else segmentor_run_config
    student, teacher = make(kind, scenes), make(kind, scenes, width=6)
    path = write_distiller_files(tmp_path, student, teacher, 'cls|conv_seg')
    report = check_config(Config.fromfile(path))
    assert report.faults == []
    found = texts(report)
    # mmdet leaves out the training image without an object.
    assert found['train_dataloader.dataset'] == ('4 images' if kind == 'retinanet' else '5 images')
    assert found['classes'] == f'{len(SCENE_CLASSES)}, in the data set and in the model'
    assert 'images of 64x96 on a device' in found['memory']
    assert re.match(r'(\d+) of \1 tensors', found['teacher'])


@pytest.mark.parametrize(
    ('warmup', 'training', 'told'),
    [
        (4, {}, None),  # of 2 epochs of 32 images, 8 at a time
        (5, {}, 'has 8: set model.warmup=0, or train longer (counted for one device)'),
        (200, dict(max_epochs=100), None),
        (200, dict(max_epochs=25), 'grow over 200 iterations, but this training has 100: set model.warmup=10'),
        (
            200,
            dict(by_epoch=False, max_epochs=None, max_iters=300),
            'has 300: set model.warmup=30, or train longer (counted for one device)',
        ),
    ],
)
def test_a_warmup_of_most_of_the_training_is_told(tmp_path: Path, warmup: int, training: dict, told: str | None) -> None:
    cfg = distiller_run_config(str(tmp_path), warmup=warmup)
    cfg.train_cfg.update(training)
    report = check_config(cfg, ['models', 'data'])
    assert report.faults == []
    found = texts(report).get('warmup')
    assert found is None if told is None else told in found
    warnings = [finding.subject for finding in report.findings if finding.level == 'warning']
    assert warnings == ([] if told is None else ['warmup'])


@pytest.mark.parametrize(
    ('batch', 'loader', 'is_refused'),
    [
        (31, {}, True),  # of 32 images
        (1, {}, True),
        (31, dict(drop_last=True), False),
        (31, dict(sampler=dict(type='InfiniteSampler')), False),
        (8, {}, False),
    ],
)
def test_a_last_batch_of_one_image_is_a_fault_where_it_cannot_train(
    tmp_path: Path, batch: int, loader: dict, is_refused: bool
) -> None:
    """Vectors are normalised over the batch; maps, over their locations, too."""
    for feature, faults in ((dict(path='head.fc', io='input', channels=16), is_refused), (None, False)):
        site = dict(type='dskd_mm.ClassificationSite', feature=feature)
        cfg = distiller_run_config(str(tmp_path), site=site)
        cfg.train_dataloader.update(batch_size=batch, **loader)
        found = [finding.text for finding in check_config(cfg, ['models', 'data', 'step']).faults]
        assert len(found) == faults
        assert not faults or 'drop_last=True' in found[0]


@pytest.mark.parametrize(('own', 'theirs', 'is_told'), [(0, 0, False), (1, 0, True), (0, 1, True), (1, 1, False), (1, 2, True)])
def test_images_that_are_normalised_in_the_pipeline_are_told(run: Config, own: int, theirs: int, is_told: bool) -> None:
    """Preprocessors are turned into one another, but of a pipeline nothing is known when the teacher runs."""
    teacher = copy.deepcopy(run)
    teacher.model = run.model.teacher.config.model
    for cfg, scale in ((run, own), (teacher, theirs)):
        if scale:
            step = dict(type='mmcv.Normalize', mean=[0.0] * 3, std=[float(scale)] * 3)
            cfg.train_dataloader.dataset.pipeline = [step]
    run.model.teacher.config = teacher.to_dict()
    report = check_config(run, ['models'])
    assert report.faults == []
    assert ('normalisation' in texts(report)) == is_told


def test_a_plain_model_is_checked_as_well(tmp_path: Path) -> None:
    report = check_config(plain_run_config(str(tmp_path)))
    assert report.faults == []
    found = texts(report)
    assert found['model'].startswith('ImageClassifier, not distilled')
    assert 'dskd' not in found['step'] and 'teacher' not in found


def test_the_step_goes_on_with_random_weights_where_the_teacher_is_not_trained_yet(run: Config) -> None:
    Path(run.model.teacher.checkpoint).unlink()
    report = check_config(run)
    assert [finding.subject for finding in report.faults] == ['teacher']
    steps = [finding.text for finding in report.findings if finding.subject == 'step']
    assert steps[0] == "the teacher's weights are random ones" and 'loss_dskd_lsh' in steps[1]


def test_weights_to_begin_with_are_compared(run: Config, tmp_path: Path) -> None:
    """mmengine loads what fits and logs the rest; here it is counted before."""
    student = random_teacher(str(tmp_path / '..'), seed=3, width=4)['checkpoint']
    state = torch.load(student, weights_only=True)['state_dict']
    del state['head.fc.weight']
    torch.save(dict(state_dict=state), tmp_path / 'begin.pth')
    run.load_from = str(tmp_path / 'begin.pth')
    report = check_config(run, ['models', 'checkpoints'])
    count = len(state)
    assert f'{count} of {count + 1} tensors are in' in texts(report)['load_from']
    assert '1 missing (head.fc.weight)' in texts(report)['load_from']


def test_a_teacher_of_which_only_the_classifier_is_used_is_compared_by_that(tmp_path: Path) -> None:
    cfg = distiller_run_config(str(tmp_path), target='label', loss_weights=dict(logit=0.0))
    content = torch.load(cfg.model.teacher.checkpoint, weights_only=True)
    state = {key: value for key, value in content['state_dict'].items() if key.startswith('head.')}
    torch.save(dict(state_dict=state), cfg.model.teacher.checkpoint)
    report = check_config(cfg)
    assert texts(report)['teacher'].startswith('2 of 2 tensors')
    # The step runs by the same rule.
    assert [finding for finding in report.faults if finding.part != 'checkpoints'] == []


@pytest.mark.parametrize(
    ('scheduler', 'words'),
    [
        (
            dict(type='CosineAnnealingLR', begin=5),
            ['end should be larger than begin', 'begins at 5', '2 epochs', 'take it out'],
        ),
        (dict(type='CosineAnealingLR'), ['Expected a type that is registered', 'CosineAnealingLR']),
        (dict(type='MultiStepLR', milestone=[1]), ['milestone']),
    ],
)
def test_a_schedule_that_cannot_be_built_is_a_fault(run: Config, scheduler: dict, words: list[str]) -> None:
    run.param_scheduler = [dict(type='LinearLR', start_factor=0.1, by_epoch=False, end=500), scheduler]
    (fault,) = check_config(run, CHEAP, thorough=False).faults
    assert fault.subject == 'param_scheduler.1'
    assert [word for word in words if word not in fault.text] == [], fault.text


def test_an_unknown_optimizer_is_named(run: Config) -> None:
    run.optim_wrapper.optimizer.type = 'SDG'
    (fault,) = check_config(run, ['models', 'step']).faults
    assert fault.subject == 'step' and "nothing is under the name 'SDG' (optimizer)" in fault.text


def test_a_schedule_that_never_runs_is_told(run: Config) -> None:
    run.param_scheduler = dict(type='ConstantLR', begin=9, end=20, convert_to_iter_based=True)
    report = check_config(run, ['schedule'])
    assert report.faults == [] and 'after the end of training at 2' in texts(report)['param_scheduler.0']


def test_what_fails_in_the_plain_model_too_is_no_fault(run: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """Random batches do not suit every model; what the distillation alone raises is a fault."""
    from mmpretrain.models import ImageClassifier

    def fail(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise RuntimeError('random images do not suit this model')

    with monkeypatch.context() as patch:
        patch.setattr(ImageClassifier, 'loss', fail)
        report = check_config(run, ['models', 'checkpoints', 'step'])
    assert report.faults == []
    assert 'the plain model fails on random images of 64x64, too' in texts(report)['step']
    monkeypatch.setattr('dskd_mm.distillers.DSKDDistiller.distill', fail)
    (fault,) = check_config(run, ['models', 'checkpoints', 'step']).faults
    assert fault.subject == 'step' and 'random images do not suit' in fault.text


def test_losses_that_are_not_finite_are_a_fault(run: Config) -> None:
    state = torch.load(run.model.teacher.checkpoint, weights_only=True)
    state['state_dict']['head.fc.weight'].fill_(float('inf'))
    torch.save(state, run.model.teacher.checkpoint)
    report = check_config(run)
    (fault,) = report.faults
    assert fault.subject == 'step' and ('finite' in fault.text)


@pytest.mark.parametrize(('student', 'level'), [(1.0, 'fault'), (math.nan, 'ok')])
def test_whose_loss_is_not_finite_is_told_of_every_method(run: Config, student: float, level: str) -> None:
    report = Report(run)
    report_step(report, Step(dict(loss=math.nan, loss_student=student, loss_kd=math.nan), [], 1.0, 0))
    (finding,) = report.findings
    assert finding.level == level and 'loss_kd' in finding.text


@pytest.mark.parametrize(
    ('part', 'key', 'value'),
    [
        ('environment', 'model.teacher', 'teacher.pth'),
        ('schedule', 'param_scheduler', 'cosine'),
        ('data', 'val_evaluator', ['A']),
    ],
)
def test_what_no_config_of_mmengine_has_is_a_fault(run: Config, part: str, key: str, value: Any) -> None:
    run.merge_from_dict({key: value})
    faults = [finding for finding in check_config(run, [part]).faults if 'can be read as one of mmengine' in finding.text]
    assert [fault.subject for fault in faults] == [part]


def test_frozen_parameters_are_not_listed_one_by_one(run: Config) -> None:
    """mmengine warns of each where rules give parameters their own learning rates."""
    model = MMENGINE_MODELS.build(run.model)
    model.student.backbone.requires_grad_(False)
    run.optim_wrapper.paramwise_cfg = dict(bias_lr_mult=2.0)
    logger, told = MMLogger.get_current_instance(), []
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]
    logger.addHandler(handler)
    level = logger.level
    try:
        build_optimizer(model, run)
        logger.error('and nothing else')
    finally:
        logger.removeHandler(handler)
    assert told == ['and nothing else'] and logger.level == level


def test_parameters_without_a_gradient_are_told(run: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    from mmpretrain.models import ImageClassifier

    class WithSpare(ImageClassifier):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.spare = nn.Parameter(torch.zeros(1))

    monkeypatch.setitem(MODELS._module_dict, 'WithSpare', WithSpare)
    run.model = {**classifier_config(), 'type': 'dskd_mm.WithSpare'}
    report = check_config(run, ['models', 'step'])
    assert '1 get no gradient (spare)' in texts(report)['unused parameters']
    run.find_unused_parameters = True
    report = check_config(run, ['models', 'step'])
    assert 'unused parameters' not in texts(report)


@pytest.mark.parametrize('name', ['retinanet_r101_r50', 'deeplabv3_r101_r18', 'resnet20_r56_cifar100'])
def test_no_memory_is_spent_on_weights(name: str) -> None:
    """What makes the check cheap at the start of a training."""
    cfg = Config.fromfile(CONFIGS / f'dskd/{name}.py')
    pytest.importorskip(cfg.default_scope)
    report = check_config(cfg, ['models'], thorough=False)
    for model in (report.model, report.teacher):
        assert model is not None and all(parameter.is_meta for parameter in model.parameters())


def test_a_model_that_computes_with_its_weights_is_built_with_them() -> None:
    def build() -> nn.Module:
        layer = nn.Linear(2, 2)
        assert float(layer.weight.sum()) == float(layer.weight.sum())
        return layer

    assert not next(skeleton(build).parameters()).is_meta
    assert next(skeleton(lambda: nn.Linear(2, 2)).parameters()).is_meta
    with pytest.raises(ValueError, match='the words of the config'):
        skeleton(lambda: (_ for _ in ()).throw(ValueError('the words of the config')))


def test_nothing_is_downloaded_at_the_start_of_a_training(run: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError('downloaded')

    monkeypatch.setattr(torch.hub, 'load_state_dict_from_url', fail)
    run.model.teacher.checkpoint = 'https://example.com/teacher.pth'
    run.model.student.backbone.init_cfg = dict(type='Pretrained', checkpoint='torchvision://resnet18')
    report = check_config(run, CHEAP, thorough=False)
    assert report.faults == []
    assert 'is downloaded when training begins' in texts(report)['teacher']
    assert 'not looked at' in texts(report)['student.backbone.init_cfg']


def test_what_a_model_translates_itself_is_no_fault(run: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Swin and its like read the files of their authors, whose keys are others."""
    torch.save(dict(state_dict={'layers.0.weight': torch.zeros(2)}), tmp_path / 'a.pth')
    run.model.student.backbone.init_cfg = dict(type='Pretrained', checkpoint=str(tmp_path / 'a.pth'))
    report = check_config(run, CHEAP, thorough=False)
    assert [finding.subject for finding in report.faults] == ['student.backbone.init_cfg']
    monkeypatch.setattr('dskd_mm.backbones.CIFARResNet.init_weights', lambda self: None, raising=False)
    report = check_config(run, CHEAP, thorough=False)
    assert report.faults == [] and 'translates' in texts(report)['student.backbone.init_cfg']


def test_a_folder_to_begin_with_is_left_to_mmengine(run: Config, tmp_path: Path) -> None:
    (tmp_path / 'epoch_1').mkdir()
    for resume in (False, True):
        run.merge_from_dict(dict(load_from=str(tmp_path / 'epoch_1'), resume=resume))
        report = check_config(run, CHEAP, thorough=False)
        assert report.faults == []


class OfFiles(BaseDataset):
    def load_data_list(self) -> list:
        return []


@pytest.mark.parametrize('root', ['', 'data', '/data', 'data/'])
@pytest.mark.parametrize('ann_file', ['', 'a.json', '/b/a.json'])
@pytest.mark.parametrize('prefix', [{}, dict(img='images', seg='/masks'), dict(img='')])
def test_paths_are_joined_as_mmengine_joins_them(root: str, ann_file: str, prefix: dict) -> None:
    theirs = OfFiles(data_root=root, ann_file=ann_file, data_prefix=dict(prefix), lazy_init=True)
    ours = dict(dataset_paths(dict(data_root=root, ann_file=ann_file, data_prefix=prefix)))
    assert ours.get('ann_file', '') == theirs.ann_file
    for key, path in prefix.items():
        assert ours.get(f'data_prefix.{key}', root) == theirs.data_prefix[key] or not path


def test_all_settings_of_a_lost_folder_are_named_at_once(tmp_path: Path) -> None:
    pytest.importorskip('mmdet')
    report = check_config(detector_run_config('retinanet', tmp_path / 'lost'), ['data'])
    (fault,) = report.faults
    keys = [f'{part}_dataloader.dataset.data_root=...' for part in ('train', 'val', 'test')]
    evaluators = [f'{part}_evaluator.ann_file=...' for part in ('val', 'test')]
    assert fault.text.endswith(' '.join([*keys, *evaluators]))


def test_data_sets_in_wrappers_are_found(run: Config, tmp_path: Path) -> None:
    inner = dict(run.train_dataloader.dataset, data_root=str(tmp_path / 'lost'))
    other = dict(run.train_dataloader.dataset, data_root=str(tmp_path / 'lost too'))
    run.train_dataloader.dataset = dict(
        type='RepeatDataset', times=2, dataset=dict(type='ConcatDataset', datasets=[inner, other])
    )
    report = check_config(run, ['data'])
    assert [finding.subject for finding in report.faults] == [
        f'train_dataloader.dataset.dataset.datasets.{i}.dataset.data_root' for i in (0, 1)
    ] or (all('lost' in finding.text for finding in report.faults) and len(report.faults) == 2)


def test_the_wrapper_of_data_sets_is_looked_at_as_a_whole(run: Config) -> None:
    """Its images make the epoch, and its pipeline the samples."""
    part = run.train_dataloader.dataset.to_dict()
    count = part['num_images']
    run.train_dataloader.dataset = dict(type='ConcatDataset', datasets=[part, copy.deepcopy(part)])
    run.train_dataloader.batch_size = 2 * count - 1
    report = check_config(run, ['data'])
    assert f'{2 * count} images in all' in [finding.text for finding in report.findings] and not report.faults
    assert report.ends_in_one_image and 'warmup' not in texts(report)
    run.model.warmup = 1000
    assert 'warmup' in texts(check_config(run, ['models', 'data']))


def test_the_pipeline_of_a_wrapper_is_read() -> None:
    inner = dict(type='CocoDataset', pipeline=[dict(type='LoadImageFromFile'), dict(type='Resize', scale=(99, 77))])
    steps = [dict(type='Mosaic', img_scale=(640, 640)), dict(type='Resize', scale=(64, 32)), dict(type='Normalize', mean=[0])]
    dataset = dict(type='MultiImageMixDataset', dataset=inner, pipeline=steps)
    cfg = Config(dict(train_dataloader=dict(dataset=dataset)))
    assert pipeline_size(cfg) == (32, 64) and normalizing_steps(cfg) == [dict(mean=[0])]
    del dataset['pipeline'][1:]
    assert pipeline_size(Config(dict(train_dataloader=dict(dataset=dataset)))) == (77, 99)


def test_data_sets_of_several_loaders_are_found(run: Config, tmp_path: Path) -> None:
    lost = dict(run.val_dataloader, dataset=dict(run.val_dataloader.dataset, data_root=str(tmp_path / 'lost')))
    run.val_dataloader = [run.val_dataloader, lost]
    (fault,) = check_config(run, ['data']).faults
    assert 'lost' in fault.text and 'val_dataloader.1.dataset' in f'{fault.subject}{fault.text}'


def test_the_setting_of_one_of_several_evaluators_is_named(run: Config) -> None:
    run.val_evaluator = [run.val_evaluator, dict(type='CocoMetric', ann_file='no/val.json')]
    (fault,) = check_config(run, ['data']).faults
    assert 'val_evaluator.1.ann_file=' in fault.text


def test_labels_of_ignored_objects_are_not_those_of_the_model() -> None:
    """CrowdHuman calls them -1."""
    ignored, wrong = dict(bbox_label=-1, ignore_flag=1), dict(bbox_label=7, ignore_flag=0)
    assert list(item_problems([dict(instances=[ignored, dict(bbox_label=0, ignore_flag=0)])], 1)) == []
    (problem,) = item_problems([dict(instances=[ignored, wrong])], 1)
    assert 'Expected labels from 0 to 0, but there are [7]' in problem


def test_weights_of_a_class_instead_of_its_name_are_looked_for(run: Config) -> None:
    run.model.student.backbone.init_cfg = dict(type=PretrainedInit, checkpoint='/nowhere/backbone.pth')
    assert any('/nowhere/backbone.pth' in fault.text for fault in check_config(run, ['models', 'checkpoints']).faults)


def test_what_is_elsewhere_is_not_looked_at(run: Config) -> None:
    run.train_dataloader.dataset.data_root = 's3://bucket/data'
    for key in ('data_root', 'data_prefix'):
        own = dict(metainfo=dict(classes=list('abcde')), split='val', pipeline=[])
        run.val_dataloader.dataset = {'type': 'CIFAR100', **own, key: 'no/such/cifar100'}
        report = check_config(run, ['data'], thorough=False)
        assert report.faults == []
        found = texts(report)
        assert 'not on this machine' in found['train_dataloader.dataset.data_root']
        assert 'downloads itself' in found[f'val_dataloader.dataset.{key}']


def test_the_environment_variable_is_named_where_it_helps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv('DSKD_DATA_ROOT', '/no/such/folder')
    report = check_config(Config.fromfile(CONFIGS / 'plain/resnet8-w8_fashion-mnist.py'), ['data'])
    (fault,) = report.faults
    assert '/no/such/folder/fashion_mnist' in fault.text and 'DSKD_DATA_ROOT' in fault.text
    report = check_config(Config.fromfile(ROOT / 'examples/digits/configs/seg_plain.py'), ['data'])
    assert all('DSKD_DATA_ROOT' not in fault.text for fault in report.faults)


@pytest.mark.parametrize(
    ('pipeline', 'size'),
    [
        ([dict(type='Resize', scale=(1333, 800), keep_ratio=True)], (800, 1333)),
        ([dict(type='RandomResize', scale=(2048, 1024)), dict(type='RandomCrop', crop_size=(512, 1024))], (512, 1024)),
        ([dict(type='RandomResizedCrop', scale=224)], (224, 224)),
        ([dict(type='RandomChoiceResize', scales=[(480, 1333), (800, 1333)])], (1333, 800)),
        ([dict(type='PackInputs')], None),
    ],
)
def test_the_size_of_images_is_read_off_the_pipeline(pipeline: list, size: tuple[int, int] | None) -> None:
    cfg = Config(dict(train_dataloader=dict(dataset=dict(type='Any', pipeline=pipeline))))
    assert pipeline_size(cfg) == size


@pytest.mark.parametrize(
    ('optimizer', 'copies'),
    [(dict(type='SGD', lr=0.1), 2), (dict(type='SGD', momentum=0.9), 3), (dict(type='AdamW'), 4)],
)
def test_the_memory_of_weights_is_counted(optimizer: dict, copies: int) -> None:
    model = nn.Sequential(nn.Linear(10, 5), nn.BatchNorm1d(5))
    model[0].bias.requires_grad_(False)
    trained, fixed = 4 * (50 + 10), 4 * (5 + 10) + 8
    assert weight_bytes(model, optimizer) == copies * trained + fixed


def test_the_memory_of_activations_grows_with_images_and_size(tmp_path: Path) -> None:
    cfg = plain_run_config(str(tmp_path))
    kept = {}
    for images, size in ((2, 16), (4, 16), (2, 32)):
        model = MMENGINE_MODELS.build(copy.deepcopy(cfg.model))
        batch = synthetic_batch(cfg, images, (size, size))
        kept[images, size] = take_step(model, build_optimizer(model, cfg), batch, (size, size)).kept
    assert kept[4, 16] == pytest.approx(2 * kept[2, 16], rel=0.05)
    assert kept[2, 32] == pytest.approx(4 * kept[2, 16], rel=0.05)
    # The first map alone, of a convolution, its norm and its activation.
    assert kept[2, 16] > 3 * 2 * 4 * 16 * 16 * 4


def test_items_are_chosen_evenly() -> None:
    assert spread(5, 8) == [0, 1, 2, 3, 4]
    assert spread(100, 4) == [0, 25, 50, 75]
    assert spread(0, 4) == []


def test_the_oldest_versions_are_those_that_can_be_installed() -> None:
    text = (ROOT / 'setup.py').read_text(encoding='utf-8')
    assert ast.parse(text)
    names = dict(mmengine='mmengine', mmcv='mmcv', mmpretrain='mmpretrain', mmdet='mmdet', mmseg='mmsegmentation')
    for package, minimum in MINIMUM.items():
        (told,) = re.findall(rf"'{names[package]}>=([\d.]+)", text)
        assert minimum.removesuffix('.0') == told.removesuffix('.0'), package


# ------------------------------------------------------------------------------------------------------------------- the tools


def test_the_tool_reports_and_exits(run: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / 'config.py'
    run.dump(str(path))
    with pytest.raises(SystemExit) as caught:
        run_script(ROOT / 'tools/misc/check_config.py', path)
    printed = capsys.readouterr().out
    assert caught.value.code == 0
    assert '0 faults' in printed and 'FAULT' not in printed and 'memory' in printed
    with pytest.raises(SystemExit) as caught:
        run_script(ROOT / 'tools/misc/check_config.py', path, '--skip', 'step', '--cfg-options', 'model.taget=soft')
    printed = capsys.readouterr().out
    assert caught.value.code == 1
    assert '1 faults' in printed and "'taget'" in printed and 'memory' not in printed


def test_training_is_refused_with_all_faults_at_once(run: Config, tmp_path: Path) -> None:
    path = tmp_path / 'config.py'
    run.train_dataloader.dataset.data_root = 'no/such/data'
    Path(run.model.teacher.checkpoint).unlink()
    run.experiment_name = 'refused'
    run.dump(str(path))
    with pytest.raises(SystemExit, match=r'(?s)cannot train:.*no/such/data.*Expected a checkpoint at.*--no-preflight'):
        run_script(ROOT / 'tools/train.py', path)
    # On request it begins, and comes as far as it can.
    with pytest.raises(FileNotFoundError, match='Expected a checkpoint at'):
        run_script(ROOT / 'tools/train.py', path, '--no-preflight')


def test_a_check_that_fails_itself_is_no_reason_not_to_train(
    run: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError('a fault of the check')

    monkeypatch.setattr('dskd_mm.preflight.check_config', fail)
    refuse_faults(run)
    assert 'given up' in capsys.readouterr().out


def test_a_host_config_is_checked_by_its_address(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip('mmdet')
    address = 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'
    assert load_config(address)
    with pytest.raises(SystemExit) as caught:
        run_script(ROOT / 'tools/misc/check_config.py', address, '--quick', '--skip', 'data', 'step')
    assert caught.value.code == 0
    assert 'RetinaNet, not distilled' in capsys.readouterr().out


@pytest.mark.parametrize('where', ['argument', 'metainfo', 'file', 'metainfo file'])
def test_classes_of_a_data_set_are_those_that_its_config_names(tmp_path: Path, where: str) -> None:
    pytest.importorskip('mmpretrain')
    from dskd_mm.preflight.data import dataset_classes

    names: Any = ['ant', 'bee', 'cat', 'dog']
    if 'file' in where:
        (tmp_path / 'classes.txt').write_text('\n'.join(names))
        names = str(tmp_path / 'classes.txt')
    given = dict(metainfo=dict(classes=names)) if 'metainfo' in where else dict(classes=names)
    dataset = dict(type='ImageNet', _scope_='mmpretrain', data_root='data')
    assert dataset_classes({**dataset, **given}) == 4
    assert dataset_classes(dataset) == 1000


@pytest.mark.parametrize('known', [['a', 'b', 'c'], ['a', 'c', 'b'], ['a', 'b'], None])
def test_a_teacher_of_other_classes_is_told(tmp_path: Path, known: list[str] | None) -> None:
    pytest.importorskip('mmpretrain')
    from dskd_mm.preflight.models import check_class_order
    from dskd_mm.teacher import FrozenTeacher

    path = str(tmp_path / 'teacher.pth')
    torch.save(dict(meta=dict(dataset_meta=dict(classes=known)), state_dict={}), path)
    dataset = dict(type='CustomDataset', _scope_='mmpretrain', metainfo=dict(classes=('a', 'b', 'c')))
    report = Report(Config(dict(train_dataloader=dict(dataset=dataset))), thorough=False)
    check_class_order(report, FrozenTeacher(dict(model=dict(type='Any')), path))
    told = [finding.text for finding in report.findings]
    if known in (None, ['a', 'b', 'c']):
        assert not told
    else:
        first = "class 1 is 'c' to the teacher and 'b' in the data" if len(known) == 3 else 'class 2 is None'
        assert len(told) == 1 and first in told[0]


def test_the_order_of_classes_in_folders_is_compared(run: Config, tmp_path: Path) -> None:
    """Their names are known once the data set is built."""
    from PIL import Image

    for name in ('asky', 'leaf', 'zapple'):
        (tmp_path / 'images' / name).mkdir(parents=True)
        Image.new('RGB', (32, 32)).save(tmp_path / 'images' / name / 'a.png')
    state = torch.load(run.model.teacher.checkpoint)
    state['meta'] = dict(dataset_meta=dict(classes=['apple', 'leaf', 'sky']))
    torch.save(state, run.model.teacher.checkpoint)
    pipeline = [dict(type='LoadImageFromFile'), dict(type='PackInputs')]
    run.train_dataloader.dataset = dict(type='CustomDataset', data_root=str(tmp_path / 'images'), pipeline=pipeline)
    report = check_config(run, ['models', 'data', 'checkpoints'])
    (warning,) = [finding for finding in report.findings if finding.subject == 'teacher classes']
    assert warning.level == 'warning' and "'apple'" in warning.text and "'asky'" in warning.text


WRAPPERS: dict[str, Any] = {
    'alone': lambda dataset: dataset,
    'repeated': lambda dataset: dict(type='RepeatDataset', times=2, dataset=dataset),
    'joined': lambda dataset: dict(type='ConcatDataset', datasets=[dataset, dataset]),
    'balanced': lambda dataset: dict(type='ClassBalancedDataset', oversample_thr=0.1, dataset=dataset),
    'mixed': lambda dataset: dict(type='MultiImageMixDataset', dataset=dataset, pipeline=[]),
    'joined and repeated': lambda dataset: dict(
        type='RepeatDataset', times=2, dataset=dict(type='ConcatDataset', datasets=[dataset])
    ),
}
COUNTED = [
    ('mmpretrain', 'CIFAR10', dict(head=dict(num_classes=3))),
    ('mmpretrain', 'ImageNet', dict(head=dict(num_classes=3))),
    ('mmdet', 'CocoDataset', dict(bbox_head=dict(num_classes=3))),
    ('mmseg', 'ADE20KDataset', dict(decode_head=dict(num_classes=3))),
]


@pytest.mark.parametrize('wrapper', WRAPPERS)
@pytest.mark.parametrize(('host', 'kind', 'model'), COUNTED, ids=[kind for _, kind, _ in COUNTED])
def test_chosen_classes_are_counted_in_every_wrapper(host: str, kind: str, model: dict, wrapper: str) -> None:
    pytest.importorskip(host)
    from dskd_mm.preflight.data import check_data

    for names, is_right in ((('a', 'b', 'c'), True), (('a', 'b', 'c', 'd'), False), (None, False)):
        dataset = dict(type=kind, _scope_=host, metainfo=dict(classes=names) if names else {})
        report = Report(Config(dict(model=model, train_dataloader=dict(dataset=WRAPPERS[wrapper](dataset)))), thorough=False)
        check_data(report)
        faults = [finding.subject for finding in report.faults]
        assert bool(faults) != is_right, (names, faults)
        assert all(subject.endswith('classes') for subject in faults)
