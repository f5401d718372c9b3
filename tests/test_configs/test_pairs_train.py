"""Every config, made small, takes a training step with its own optimizer: distillers with a random teacher."""

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from config_helpers import (
    CPU_SIZED,
    DEMO,
    METHODS,
    PAIRS,
    PLAIN,
    inherited_packages,
    is_installed,
    load,
    name_of,
    skip_without,
    teaches,
)
from mmengine.config import Config, ConfigDict
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn

from dskd_mm.testing import reaches
from dskd_mm.utils.config import load_config, model_config, nodes, student_config
from dskd_mm.utils.methods import suits
from dskd_mm.utils.synthetic import synthetic_batch

FACTOR = 8
WIDTHS = (
    'in_channels',
    'out_channels',
    'channels',
    'feat_channels',
    'point_feat_channels',
    'fc_out_channels',
    'conv_out_channels',
    'embed_dims',
    'feedforward_channels',
    'num_feats',
)
SEG_SIZE = (64, 128)
STUDENTS = {Path(base).stem for path in PAIRS for base in Config._get_base_files(str(path))}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('teachers')


# The students of pairs take their steps below.
@pytest.mark.parametrize('path', [path for path in PLAIN if path.stem not in STUDENTS], ids=name_of)
def test_plain_config_takes_a_training_step(path):
    cfg = load(path)
    skip_without(cfg.default_scope)
    if not is_small(path):
        shrink(cfg.model)
    model = build_model(cfg)
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    _, optimizer = compute_gradients(cfg, model)
    optimizer.step()
    assert any(not torch.equal(p, before[name]) for name, p in model.named_parameters() if p.requires_grad)


@pytest.mark.parametrize('path', [*PAIRS, *filter(teaches, DEMO)], ids=name_of)
def test_pair_takes_a_training_step(path, folder):
    losses = take_step(load(path), path, folder, 'dskd')
    assert {'loss_dskd_anchor', 'loss_dskd_diff', 'loss_dskd_lsh'} <= set(losses)


@pytest.mark.parametrize('method', METHODS)
def test_method_takes_a_training_step(method, folder):
    """With each of its settings, at the smallest pair that has them."""
    seen = set()
    for path in sorted(PAIRS, key=lambda path: not is_small(path)):
        if not all(is_installed(package) for package in inherited_packages(path)):
            continue
        pair = load(path)
        if not is_installed(pair.default_scope) or not suits(method, pair):
            continue
        cfg = load(path, method)
        settings = {key: value for key, value in cfg.model.items() if key not in ('student', 'teacher')}
        kind = (pair.default_scope, 'roi_head' in cfg.model.student, str(settings))
        if kind not in seen:
            seen.add(kind)
            take_step(cfg, path, folder, method)
    assert seen


def take_step(cfg: Config, path: Path, folder: Path, method: str) -> dict[str, Tensor]:
    """The losses of one step of a config, made small; those of the method reach the student."""
    skip_without(cfg.default_scope)
    distiller = build_small(cfg, is_small(path), folder)
    losses, optimizer = compute_gradients(cfg, distiller)
    own = {key: value for key, value in losses.items() if key.startswith(f'loss_{method}')}
    assert own, path
    assert [key for key in losses if 'loss' in key and key not in own], path
    assert reaches(sum(own.values()), distiller.student.backbone), path
    optimizer.step()
    return losses


def is_small(path: Path) -> bool:
    """Whether a config is small as it is."""
    return path in DEMO or CPU_SIZED.search(path.stem) is not None


def compute_gradients(cfg: Config, model: nn.Module) -> tuple[dict[str, Tensor], OptimWrapper]:
    """Losses on a random batch, their gradients, of all parameters as DDP wants it, and the config's optimizer."""
    model.train()
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        optimizer = build_optim_wrapper(model, cfg.optim_wrapper)
    if cfg.default_scope == 'mmseg':  # it pads to the config's size of crops
        model.data_preprocessor.size, model.data_preprocessor.size_divisor = SEG_SIZE, None
    data = model.data_preprocessor(random_batch(cfg), training=True)
    losses = model(**data, mode='loss')
    total, log = model.parse_losses(losses)
    assert [key for key, value in log.items() if not bool(torch.isfinite(value))] == []
    total.backward(retain_graph=True)
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    return losses, optimizer


def build_small(cfg: Config, as_it_is: bool, folder: Path) -> Any:
    """The distiller of a config between small models, with a random teacher."""
    model = cfg.model
    teacher, checkpoint = small_teacher(model.teacher.config, as_it_is, folder)
    student = student_config(cfg)
    check_heads(student.model, load_config(model.teacher.config).model)
    if not as_it_is:
        shrink(student.model)
    model.student = student.model
    model.teacher = dict(config=teacher, checkpoint=checkpoint)
    model.data_preprocessor = cfg.get('data_preprocessor')
    # What the methods themselves have that is wide.
    for node in nodes({key: value for key, value in model.items() if key not in ('student', 'teacher')}):
        for key in ('latent_channels', 'bits'):
            if key in node:
                node[key] = narrow(node[key])
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return MODELS.build(model)


@functools.lru_cache
def small_teacher(address: str, as_it_is: bool, folder: Path) -> tuple[Config, str]:
    """A small teacher's config and its random checkpoint."""
    cfg = load_config(address)
    if not as_it_is:
        shrink(cfg.model)
    torch.manual_seed(1)  # small, some pairs are twins
    model = build_model(cfg)
    checkpoint = folder / f'{len(list(folder.iterdir()))}.pth'
    torch.save(dict(state_dict=model.state_dict()), checkpoint)
    return cfg, str(checkpoint)


def build_model(cfg: Config) -> nn.Module:
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return MODELS.build(model_config(cfg))


def check_heads(student: ConfigDict, teacher: ConfigDict) -> None:
    """Heads of one kind must predict for the same anchors on the same levels."""
    ours, theirs = student.get('bbox_head'), teacher.get('bbox_head')
    if ours is None or 'anchor_generator' not in ours:
        return
    assert ours.type == theirs.type
    assert ours.anchor_generator == theirs.anchor_generator


def shrink(model: ConfigDict) -> None:
    """Divide the widths of a full-size model by 8 and cut its depth, in place."""
    backbone = model.backbone
    if backbone.type.startswith('dskd_mm.CIFAR') and backbone.type != 'dskd_mm.CIFARBottleneckResNet':
        return
    for node in nodes(model):
        for key in WIDTHS:
            if key in node:
                node[key] = narrow(node[key])
    if backbone.type == 'MobileNetV2':
        # Its widths are rounded to multiples of 8: 96 becomes 16.
        backbone.widen_factor /= FACTOR
        if 'auxiliary_head' in model:
            model.auxiliary_head.in_channels = 16
        else:
            model.head.in_channels = 1280
        return
    if backbone.type == 'CSPNeXt':
        backbone.widen_factor /= FACTOR
        backbone.deepen_factor = 0.33
    elif backbone.type == 'MixVisionTransformer':
        backbone.num_layers = [1, 1, 1, 1]
    else:
        backbone.base_channels = 64 // FACTOR
        if backbone.type == 'ResNeXt':
            backbone.groups = 2
        if backbone.depth > 50:
            backbone.depth = 50
    for part in ('encoder', 'decoder'):
        if part in model:
            model[part].num_layers = 1


def narrow(width: Any) -> Any:
    if isinstance(width, (list, tuple)):
        return [narrow(one) for one in width]
    return width // FACTOR if width >= 2 * FACTOR else width


def random_batch(cfg: Config) -> dict:
    """Few small images: of CIFAR's size for its networks, else so large that the last map has several locations."""
    if cfg.default_scope == 'mmpretrain':
        backbone = cfg.model.get('student', cfg.model).backbone
        size = 32 if backbone.type.startswith('dskd_mm.CIFAR') else 64
        return synthetic_batch(cfg, 4, (size, size))
    if cfg.default_scope == 'mmdet':
        return synthetic_batch(cfg, 2, (96, 128))
    batch = synthetic_batch(cfg, 2, SEG_SIZE)
    if any('class_weight' in node for node in nodes(cfg.model)):
        for sample in batch['data_samples']:
            # OpenMMLab's mmseg looks up the weights of ignored pixels as well, and finds none.
            labels = sample.gt_sem_seg.data
            labels[labels == 255] = 0
    return batch
