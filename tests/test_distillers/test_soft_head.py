"""DSKD at the neck, guided by the teacher's whole head towards the classes and boxes that it makes of its own feature."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip('mmdet')

import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope
from torch import Tensor
from torch.nn import functional as F

from benchmarks.variants import VARIANTS
from dskd_mm.distillers.soft_head import SoftHead
from dskd_mm.testing import assert_distils, assert_nothing_is_unused, assert_trains
from support import assert_refused, build_distiller, dense_distiller_config, detection_batch, random_boxes

OBJECTS = [random_boxes(3), random_boxes(2, seed=1)]
KINDS = ['retinanet', 'retinanet_softmax', 'fcos', 'atss', 'gfl', 'rtmdet']
ROOT = Path(__file__).parents[2]


def build(kind: str, directory: Any, **options: Any) -> Any:
    site = dict(type='dskd_mm.NeckSite')
    return build_distiller(dense_distiller_config(kind, str(directory), site=site, target='soft', **options))


def teacher_maps(distiller: Any, batch: dict) -> list[Tensor]:
    with torch.no_grad():
        return list(distiller.teacher.model.extract_feat(batch['inputs']))


def test_the_distance_is_the_formula(tmp_path):
    distiller = build('retinanet', tmp_path)
    distiller.load_teacher()
    wanted = teacher_maps(distiller, detection_batch(distiller, OBJECTS))
    distance = distiller.soft_head.towards(wanted)
    assert float(distance(wanted)) == 0
    torch.manual_seed(0)
    maps = [level + 0.3 * torch.randn_like(level) for level in wanted]

    def predictions(levels: list[Tensor]) -> list[Tensor]:
        outputs = distiller.teacher.model.bbox_head(levels)
        return [
            torch.cat([x.permute(0, 2, 3, 1).reshape(2, -1, length) for x in each], dim=1)
            for each, length in zip(outputs, (3, 4), strict=True)
        ]

    (scores, boxes), (theirs, their_boxes) = predictions(maps), predictions(wanted)
    p, q = scores.sigmoid(), theirs.sigmoid()
    sure = q.max(dim=2).values
    classes = (F.binary_cross_entropy(p, q, reduction='none') * (p - q).abs()).sum()
    expected = (classes + ((boxes - their_boxes).abs().sum(dim=2) * sure).sum()) / sure.sum().clamp(min=1)
    torch.testing.assert_close(distance(maps), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('kind', KINDS)
def test_it_trains(tmp_path, kind):
    distiller = build(kind, tmp_path)
    batch = detection_batch(distiller, OBJECTS)
    assert_trains(distiller, batch, {'anchor', 'diff', 'lsh'})
    assert_distils(distiller, batch)
    assert_nothing_is_unused(distiller, batch)
    teacher = distiller.teacher.model
    assert not any(module.training for module in teacher.modules())
    assert all(parameter.grad is None for parameter in teacher.parameters())


@pytest.mark.parametrize('kind', KINDS)
def test_guidance_brings_the_heads_predictions_nearer(tmp_path, kind):
    distiller = build(kind, tmp_path)
    distiller.load_teacher()
    batch = detection_batch(distiller, OBJECTS)
    distance = distiller.soft_head.towards(teacher_maps(distiller, batch))
    found = {}
    for guided in (True, False):
        aligned, denoised = distiller.denoise(*batch.values(), guided=guided)
        found[guided] = distance(aligned.pyramid.unpack(denoised)).item()
    assert found[True] < 0.95 * found[False], found


def test_annotations_do_not_matter(tmp_path):
    """The anchor is the teacher's opinion; without a teacher's feature of its own there is none."""
    distiller = build('retinanet', tmp_path)
    anchors = [
        distiller(**detection_batch(distiller, objects), mode='loss')['loss_dskd_anchor'].item()
        for objects in (OBJECTS, [[], []])
    ]
    assert anchors[0] == pytest.approx(anchors[1], rel=1e-4) and anchors[0] > 0
    assert distiller.uses_teacher_forward


@pytest.mark.parametrize('options', [{}, dict(loss_weights=dict(anchor=0.0), lsh_share=0.0)])
def test_what_the_head_likes_less_does_not_teach(tmp_path, options, monkeypatch):
    """A neck has a gate, too: the head's loss of the whole batch."""
    distiller = build('retinanet', tmp_path, lsh=dict(bits=64), **options)
    batch = detection_batch(distiller, OBJECTS)
    for factor, is_open in ((50.0, False), (0.0, True)):

        def denoise(start: Tensor, *args: Any, factor: float = factor) -> tuple[Tensor, None]:
            wanted = torch.cat([level.flatten(2) for level in teacher_maps(distiller, batch)], dim=2)
            return wanted + factor * torch.randn_like(start), None

        monkeypatch.setattr(distiller.diffusion, 'denoise', denoise)
        losses = distiller(**batch, mode='loss')
        assert (losses['dskd_kl_denoised'] < losses['dskd_kl_student']) == is_open
        assert float(losses['dskd_gate']) == is_open
        assert (float(losses['loss_dskd_lsh']) > 0) == is_open
    distiller.options.gate = False
    monkeypatch.setattr(distiller.diffusion, 'denoise', lambda start, *args: (start + 50 * torch.randn_like(start), None))
    assert float(distiller(**batch, mode='loss')['loss_dskd_lsh']) > 0


@pytest.mark.parametrize('kind', ['faster_rcnn', 'detr'])
def test_other_heads_are_refused_and_told_what_works(tmp_path, kind):
    config = dense_distiller_config(kind, str(tmp_path), site=dict(type='dskd_mm.NeckSite'))
    words = ['dense head (RetinaNet, FCOS, ATSS', f'a {config.teacher.config.model.type}', "set target='label'"]
    assert_refused(config, lambda config: config.update(target='soft'), words)
    assert build_distiller({**config, 'target': 'label'}).soft_head is None


@pytest.mark.parametrize('name', ['neck', 'neck-soft', 'neck-soft-anchor'])
def test_variants_of_the_benchmark(name):
    cfg = Config.fromfile(ROOT / 'configs/dskd/retinanet_r18-w8_r18-w32_bccd.py')
    cfg.merge_from_dict({key: float(value) if value == '0' else value for key, value in VARIANTS[name].options.items()})
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        distiller: Any = MODELS.build(cfg.model)
    assert isinstance(distiller.soft_head, SoftHead) == ('soft' in name)
    assert (distiller.diffusion is None) == ('anchor' in name)
