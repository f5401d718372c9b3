"""Configs for classification build, and their pairs fit together."""

import copy
import re
from pathlib import Path

import pytest
import torch
from config_helpers import PAIRS, PLAIN, ROOT, is_installed, load, name_of
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from dskd_mm.utils.config import load_config

CIFAR_PAIRS = [path for path in PAIRS if path.stem.endswith('_cifar100')]
SMALL_IMAGES = [path for path in PAIRS if re.search(r'cifar100|fashion-mnist', path.stem)]

needs_mmpretrain = pytest.mark.skipif(not is_installed('mmpretrain'), reason='mmpretrain is not installed')


def load_classification(path: Path) -> Config:
    cfg = load(path)
    if cfg.get('default_scope') != 'mmpretrain':
        pytest.skip('not about classification')
    return cfg


def images_for(model: dict, size: int = 32) -> torch.Tensor:
    return torch.randn(2, model['backbone'].get('in_channels', 3), size, size)


def build_classifier(cfg: Config, model: dict) -> torch.nn.Module:
    """Build a classifier as the runner does, without downloads."""
    model = copy.deepcopy(model)
    model.setdefault('data_preprocessor', cfg.data_preprocessor)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        return MODELS.build(model)


@needs_mmpretrain
@pytest.mark.parametrize('path', PLAIN, ids=name_of)
def test_plain_model_builds_and_runs(path):
    cfg = load_classification(path)
    model = build_classifier(cfg, cfg.model)
    assert model.head.num_classes == cfg.data_preprocessor.num_classes
    assert model.head.in_channels == model.backbone.out_channels
    model.eval()
    images = images_for(cfg.model)
    with torch.no_grad():
        scores = model(images, mode='tensor')
        # What everything rests on: the classifier's input is the mean of the returned map.
        expected = model.head.fc(model.backbone(images)[-1].mean(dim=(2, 3)))
    assert scores.shape == (2, model.head.num_classes)
    torch.testing.assert_close(scores, expected)


@needs_mmpretrain
def test_plain_model_learns_from_uint8_images():
    cfg = Config.fromfile(ROOT / 'configs/plain/resnet20_cifar100.py')
    model = build_classifier(cfg, cfg.model)
    model.init_weights()
    from mmpretrain.structures import DataSample

    batch = dict(
        inputs=torch.randint(256, (4, 3, 32, 32), dtype=torch.uint8),
        data_samples=[DataSample().set_gt_label(label) for label in (0, 1, 50, 99)],
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    losses = []
    for _ in range(8):
        data = model.data_preprocessor(batch, training=True)
        loss = model(**data, mode='loss')['loss']
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]


@needs_mmpretrain
@pytest.mark.parametrize('path', PAIRS, ids=name_of)
def test_pair_fits(path):
    cfg = load_classification(path)
    student = build_classifier(cfg, cfg.model.student)

    teacher_cfg = load_config(cfg.model.teacher.config)
    teacher = build_classifier(teacher_cfg, teacher_cfg.model)
    for key in ('mean', 'std', 'num_classes'):
        assert cfg.data_preprocessor[key] == teacher_cfg.data_preprocessor[key]
    assert student.head.num_classes == teacher.head.num_classes == cfg.data_preprocessor.num_classes

    images = images_for(cfg.model.student, size=64 if 'in1k' in path.stem else 32)
    for model in (student, teacher):
        assert model.head.fc.out_features == model.head.num_classes
        model.eval()
        with torch.no_grad():
            (features,) = model.backbone(images)
        assert features.dim() == 4
        assert features.shape[1] == model.head.fc.in_features


@needs_mmpretrain
@pytest.mark.parametrize('path', SMALL_IMAGES, ids=name_of)
def test_weight_of_mgd_follows_from_the_size_of_the_map(path):
    """MGD sums over the teacher's channels and the student's locations; its authors' 7e-5 is for maps of 512x7x7."""
    cfg = load(path, 'mgd')
    student = build_classifier(cfg, cfg.model.student)
    teacher_cfg = load_config(cfg.model.teacher.config)
    images = images_for(cfg.model.student, size=28 if 'mnist' in path.stem else 32)
    with torch.no_grad():
        (student_map,) = student.eval().backbone(images)
    size = teacher_cfg.model.head.in_channels * student_map[0, 0].numel()
    assert cfg.model.distill_losses.mgd.loss_weight == pytest.approx(7e-5 * 512 * 7 * 7 / size, rel=0.15)


@pytest.mark.parametrize('path', CIFAR_PAIRS, ids=name_of)
def test_teacher_is_trained_by_a_config_of_this_repository(path):
    """The checkpoint named is the one that training the teacher's config leaves."""
    teacher = Config.fromfile(path).model.teacher
    teacher_cfg = Config.fromfile(teacher.config)
    assert Path(teacher.config).resolve().parent == ROOT / 'configs/plain'
    last = teacher_cfg.train_cfg.max_epochs
    assert teacher.checkpoint == f'work_dirs/{Path(teacher.config).stem}/epoch_{last}.pth'
    assert last % teacher_cfg.default_hooks.checkpoint.interval == 0


@pytest.mark.parametrize(
    ('name', 'lr'),
    [('resnet20_r56', 0.05), ('mobilenetv2_r50', 0.01), ('shufflenetv1_r32x4', 0.01)],
)
def test_cifar_recipe(name, lr):
    cfg = Config.fromfile(ROOT / f'configs/dskd/{name}_cifar100.py')
    optimizer = dict(type='SGD', lr=lr, momentum=0.9, weight_decay=5e-4)
    assert cfg.optim_wrapper.optimizer == optimizer
    assert cfg.param_scheduler.milestones == [150, 180, 210]
    assert cfg.train_cfg.max_epochs == 240
    assert cfg.train_dataloader.batch_size == cfg.auto_scale_lr.base_batch_size == 64


@needs_mmpretrain
@pytest.mark.parametrize('name', ['resnet18_r34', 'mobilenetv2_r50'])
def test_imagenet_recipe(name):
    cfg = Config.fromfile(ROOT / f'configs/dskd/{name}_in1k.py')
    optimizer = dict(cfg.optim_wrapper.optimizer)
    # Inherited through `mmpretrain::`, types carry their scope.
    assert optimizer.pop('_scope_', 'mmpretrain') == 'mmpretrain'
    assert optimizer == dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=1e-4)
    assert cfg.param_scheduler.milestones == [30, 60, 90]
    assert 'step_size' not in cfg.param_scheduler
    assert cfg.train_cfg.max_epochs == 100
    assert cfg.auto_scale_lr.base_batch_size == 256


def test_data_root_from_the_environment(monkeypatch):
    monkeypatch.setenv('DSKD_DATA_ROOT', '/somewhere')
    cfg = Config.fromfile(ROOT / 'configs/plain/resnet20_cifar100.py')
    for loader in (cfg.train_dataloader, cfg.val_dataloader, cfg.test_dataloader):
        assert loader.dataset.data_root == '/somewhere/cifar100/'
