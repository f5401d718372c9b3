"""Every config, made small, takes a training step with its own optimizer: distillers with a random teacher."""

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from config_helpers import CPU_SIZED, DEMO, DISTILLED, PLAIN, load, name_of, skip_without, teaches
from mmengine.config import Config, ConfigDict
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor, nn

from dskd_mm.testing import reaches
from dskd_mm.utils.config import load_config, model_config, nodes, student_config
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
# What an eighth of mmseg's and mmpretrain's MobileNetV2 has, by what the whole has: multiples of 8, but for the last.
MOBILENET_WIDTHS = {24: 8, 32: 8, 96: 16, 320: 40, 1280: 1280}
SEG_SIZE = (64, 128)


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp('teachers')


@pytest.mark.parametrize('path', [path for path in (*PLAIN, *DEMO) if not teaches(path)], ids=name_of)
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


# Sorted by pairs: the methods of one share its teacher.
@pytest.mark.parametrize(
    'path', sorted([*DISTILLED, *filter(teaches, DEMO)], key=lambda path: (path.stem, path)), ids=name_of
)
def test_config_takes_a_training_step(path, folder):
    cfg = load(path)
    skip_without(cfg.default_scope)
    method = 'dskd' if path in DEMO else path.parent.name
    distiller = build_small(cfg, is_small(path), folder)
    assert method == 'dskd' or type(distiller).__name__ != 'DSKDDistiller'
    losses, optimizer = compute_gradients(cfg, distiller)
    own = {key: value for key, value in losses.items() if key.startswith(f'loss_{method}')}
    assert own
    if method == 'dskd':
        assert {'loss_dskd_anchor', 'loss_dskd_diff', 'loss_dskd_lsh'} <= set(own)
    assert [key for key in losses if 'loss' in key and key not in own]
    assert reaches(sum(own.values()), distiller.student.backbone)
    optimizer.step()


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
    teacher, checkpoint, new_teacher_width = small_teacher(model.teacher.config, as_it_is, folder)
    student = student_config(cfg)
    check_heads(student.model, load_config(model.teacher.config).model)
    new_width = keep if as_it_is else shrink(student.model)
    model.student = student.model
    model.teacher = dict(config=teacher, checkpoint=checkpoint)
    model.data_preprocessor = cfg.get('data_preprocessor')
    for layer in model.get('layers', {}).values():
        layer.student.channels = new_width(layer.student.channels)
        layer.teacher.channels = new_teacher_width(layer.teacher.channels)
    # What the methods themselves have that is wide.
    for node in nodes({key: value for key, value in model.items() if key not in ('student', 'teacher')}):
        for key in ('latent_channels', 'bits'):
            if key in node:
                node[key] = narrow(node[key])
    torch.manual_seed(0)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        return MODELS.build(model)


@functools.lru_cache(maxsize=4)
def small_teacher(address: str, as_it_is: bool, folder: Path) -> tuple[Config, str, Callable[[int], int]]:
    """A small teacher's config, its random checkpoint, and what became of a number of channels."""
    cfg = load_config(address)
    new_width = keep if as_it_is else shrink(cfg.model)
    torch.manual_seed(1)  # small, some pairs are twins
    model = build_model(cfg)
    checkpoint = folder / f'{len(list(folder.iterdir()))}.pth'
    torch.save(dict(state_dict=model.state_dict()), checkpoint)
    return cfg, str(checkpoint), new_width


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


def keep(width: int) -> int:
    return width


def shrink(model: ConfigDict) -> Callable[[int], int]:
    """Divide the widths of a full-size model by 8 and cut its depth, in place; what a number of channels becomes."""
    backbone = model.backbone
    if backbone.type.startswith('dskd_mm.CIFAR') and backbone.type != 'dskd_mm.CIFARBottleneckResNet':
        return keep
    for node in nodes(model):
        for key in WIDTHS:
            if key in node:
                node[key] = narrow(node[key])
    if backbone.type == 'MobileNetV2':
        # Its widths are rounded to multiples of 8: 96 becomes 16.
        backbone.widen_factor /= FACTOR
        if 'auxiliary_head' in model:
            model.auxiliary_head.in_channels = MOBILENET_WIDTHS[96]
        else:
            model.head.in_channels = 1280
        return MOBILENET_WIDTHS.__getitem__
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
    return narrow


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
