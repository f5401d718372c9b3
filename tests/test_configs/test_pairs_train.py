"""Pairs of detectors and segmenters, made small, take a training step with a random teacher."""

from pathlib import Path
from typing import Any

import pytest
import torch
from config_helpers import FULL_SIZE, load, name_of, nodes, skip_without
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS, DefaultScope

from dskd_mm.distillers import DSKDDistiller
from dskd_mm.utils.config import load_config, model_config, student_config

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


# Classifiers are built at full size elsewhere.
@pytest.mark.parametrize('path', [path for path in FULL_SIZE if not path.stem.endswith(('_cifar100', '_in1k'))], ids=name_of)
def test_pair_takes_a_training_step(path, tmp_path):
    cfg = load(path)
    skip_without(cfg.default_scope)
    teacher = load_config(cfg.model.teacher.config)
    student = student_config(cfg)
    check_heads(student.model, teacher.model)
    for model in (student.model, teacher.model):
        shrink(model)

    torch.manual_seed(0)
    cfg.model.teacher = dict(config=teacher, checkpoint=random_checkpoint(teacher, tmp_path))
    cfg.model.student = student.model
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        distiller = MODELS.build(cfg.model)
    assert type(distiller) is DSKDDistiller
    distiller.train()
    optimizer = torch.optim.SGD(distiller.parameters(), lr=1e-3)

    data = distiller.data_preprocessor(random_batch(cfg), training=True)
    losses = distiller(**data, mode='loss')
    total, log = distiller.parse_losses(losses)
    own = {key: value for key, value in losses.items() if key.startswith('loss_dskd_')}
    assert {'loss_dskd_anchor', 'loss_dskd_diff', 'loss_dskd_lsh'} <= set(own)
    assert [key for key in losses if 'loss' in key and key not in own]
    assert all(torch.isfinite(value).all() for value in log.values())

    sum(own.values()).backward(retain_graph=True)
    grads = [p.grad for p in distiller.student.backbone.parameters() if p.grad is not None]
    assert any(bool((grad != 0).any()) for grad in grads)
    assert all(bool(torch.isfinite(grad).all()) for grad in grads)
    optimizer.zero_grad()
    total.backward()
    # As DDP without find_unused_parameters wants it.
    unused = [name for name, p in distiller.named_parameters() if p.requires_grad and p.grad is None]
    assert not unused
    optimizer.step()


def check_heads(student: ConfigDict, teacher: ConfigDict) -> None:
    """Heads of one kind must predict for the same anchors on the same levels."""
    ours, theirs = student.get('bbox_head'), teacher.get('bbox_head')
    if ours is None or 'anchor_generator' not in ours:
        return
    assert ours.type == theirs.type
    assert ours.anchor_generator == theirs.anchor_generator


def shrink(model: ConfigDict) -> None:
    """Divide the widths of a full-size model of mmdet or mmseg by 8 and cut its depth, in place."""
    for node in nodes(model):
        for key in WIDTHS:
            if key in node:
                node[key] = narrow(node[key])
    backbone = model.backbone
    if backbone.type == 'MobileNetV2':
        # Its widths are rounded to multiples of 8: 96 becomes 16.
        backbone.widen_factor /= FACTOR
        model.auxiliary_head.in_channels = 16
    elif backbone.type == 'CSPNeXt':
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


def random_checkpoint(cfg: Config, folder: Path) -> str:
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(model_config(cfg))
    path = folder / 'teacher.pth'
    torch.save(dict(state_dict=model.state_dict()), path)
    return str(path)


def random_batch(cfg: Config) -> dict:
    return random_scenes(cfg) if cfg.default_scope == 'mmdet' else random_maps(cfg)


def random_scenes(cfg: Config) -> dict:
    """Two images, of 2 and 1 objects."""
    from mmdet.testing import demo_mm_inputs

    with_mask = 'mask_head' in (cfg.model.student.get('roi_head') or {})
    return demo_mm_inputs(2, [[3, 96, 128], [3, 128, 96]], [2, 1], num_classes=80, with_mask=with_mask)


def random_maps(cfg: Config) -> dict:
    """Two images with label maps of which a part is ignored."""
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    size, samples = (64, 128), []
    for _ in range(2):
        labels = torch.randint(cfg.model.student.decode_head.num_classes, (1, *size))
        labels[:, :8] = 255
        samples.append(SegDataSample(gt_sem_seg=PixelData(data=labels), metainfo=dict(img_shape=size, ori_shape=size)))
    return dict(inputs=[torch.randint(256, (3, *size), dtype=torch.uint8) for _ in range(2)], data_samples=samples)
