"""SoKD's losses and areas against plain loops, and its behaviour at every site that has maps."""

import copy
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.registry import MODELS
from rival_checks import assert_behaves, needs_mmdet, needs_mmseg, own, rival_batch, rival_config
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from dskd_mm.distillers.sokd import AreaDetector, FeatureAdapter
from dskd_mm.features.norm import BatchNorm2d
from dskd_mm.sites import NeckSite
from dskd_mm.testing import assert_nothing_is_unused, classifier_config, random_teacher, train
from support import build_distiller, watch

LOSSES = {'loss_sokd_feature', 'loss_sokd_detection', 'loss_sokd_area'}
DETECTORS = ['retinanet', 'faster_rcnn', 'detr']
KINDS = ['gap', pytest.param('fcn', marks=needs_mmseg), *(pytest.param(kind, marks=needs_mmdet) for kind in DETECTORS)]


def build(kind: str, directory: Path, **switches: Any) -> nn.Module:
    return build_distiller(rival_config('SoKDDistiller', kind, directory, **switches))


# ----------------------------------------------------------------------------------------- areas


def areas_by_loops(heat: Tensor, size: Tensor, offset: Tensor, count: int) -> Tensor:
    """Peaks, the highest of them, boxes, their sum: location by location."""
    batch, _, height, width = heat.shape
    mask = torch.zeros(batch, 1, height, width)
    for b in range(batch):
        peaks = []
        for y in range(height):
            for x in range(width):
                around = heat[b, 0, max(y - 1, 0) : y + 2, max(x - 1, 0) : x + 2]
                if heat[b, 0, y, x] >= around.max():
                    peaks.append((float(heat[b, 0, y, x]), y, x))
        for _, y, x in sorted(peaks, reverse=True)[:count]:
            w, h = (max(float(v), 1.0) for v in size[b, :, y, x])
            cx = min(max(x + float(offset[b, 0, y, x]), 0), width - 1)
            cy = min(max(y + float(offset[b, 1, y, x]), 0), height - 1)
            for i in range(height):
                for j in range(width):
                    if abs(i - cy) <= h / 2 and abs(j - cx) <= w / 2:
                        mask[b, 0, i, j] += 1
    return mask


@pytest.mark.parametrize('shape', [(6, 9), (3, 3), (1, 1), (12, 7)])
@pytest.mark.parametrize('count', [1, 8])
def test_areas_agree_with_a_loop(shape: tuple[int, int], count: int) -> None:
    torch.manual_seed(sum(shape))
    heat, size, offset = torch.rand(3, 1, *shape), 3 * torch.randn(3, 2, *shape), 2 * torch.randn(3, 2, *shape)
    detector = AreaDetector(4, num_areas=count)
    found = detector.mask(heat, size, offset)
    assert torch.equal(found, areas_by_loops(heat, size, offset, count))
    assert (found.flatten(1).amax(dim=1) >= 1).all()


def test_nothing_waits_for_the_device() -> None:
    with FakeTensorMode():  # a tensor without values: reading one raises
        detector = AreaDetector(4)
        assert detector.mask(*detector(torch.randn(2, 4, 5, 6))).shape == (2, 1, 5, 6)


def test_heads_are_convolutions_with_a_relu_between() -> None:
    torch.manual_seed(0)
    detector, feature = AreaDetector(4, hidden_channels=3), torch.randn(2, 4, 5, 6)
    for head, found in zip((detector.heat, detector.size, detector.offset), detector(feature), strict=True):
        hidden = torch.nn.functional.conv2d(feature, head[0].weight, head[0].bias, padding=1).clamp(min=0)
        out = torch.einsum('oc,bchw->bohw', head[2].weight[:, :, 0, 0], hidden) + head[2].bias[:, None, None]
        torch.testing.assert_close(found, 1 / (1 + torch.exp(-out)) if head is detector.heat else out)


@pytest.mark.parametrize(('norm', 'final_relu'), [('BN', True), ('GN', False), (None, True)])
def test_the_adapter(norm: str | None, final_relu: bool) -> None:
    torch.manual_seed(0)
    adapter = FeatureAdapter(3, 8, norm, final_relu)
    kinds = [type(module) for module in adapter.modules() if not list(module.children())]
    between = {'BN': BatchNorm2d, 'GN': nn.GroupNorm, None: nn.Identity}[norm]
    expected = [nn.Conv2d, between, nn.Conv2d, between, nn.ReLU, nn.Conv2d, between, nn.ReLU]
    assert kinds == (expected if final_relu else expected[:-1])
    found = adapter(torch.randn(2, 3, 5, 6))
    assert found.shape == (2, 8, 5, 6) and bool((found < 0).any()) != final_relu


# ----------------------------------------------------------------------------------------- losses


@needs_mmdet
@pytest.mark.parametrize('search_iters', [0, 10])
def test_losses_against_a_straight_line(tmp_path: Path, search_iters: int) -> None:
    weights = dict(feature=2.0, detection=3.0, area=0.5)
    distiller = build('retinanet', tmp_path, search_iters=search_iters, loss_weights=weights)
    calls, augmented = watch(distiller, 'distill'), watch(distiller.augment, 'forward')
    losses = distiller(**rival_batch(distiller, 'retinanet'), mode='loss')
    student, teacher = calls[0].args[:2]
    refined = [level.detach() for level in augmented[0].result]
    assert len(student.features) == len(teacher.features) == len(refined) == 5
    expected = dict.fromkeys(LOSSES, 0.0)
    with torch.no_grad():
        for ours, plain, theirs in zip(student.features, teacher.features, refined, strict=True):
            adapted = distiller.adapter(ours)
            assert theirs.shape == plain.shape == adapted.shape
            expected['loss_sokd_feature'] += 2 * float(((adapted - theirs) ** 2).mean())
            for a, b in zip(distiller.detector(adapted), distiller.detector(theirs), strict=True):
                expected['loss_sokd_detection'] += 3 * float(((a - b) ** 2).mean())
            mask = areas_by_loops(*distiller.detector(adapted), 8)
            expected['loss_sokd_area'] += 0.5 * float(((mask * adapted - mask * theirs) ** 2).mean())
    for key, value in expected.items():
        assert float(losses[key].detach()) == pytest.approx(value, rel=1e-4), key
    assert any(not torch.equal(a, b) for a, b in zip(teacher.features, refined, strict=True))


def test_without_augmentation_the_teacher_is_as_it_is(tmp_path: Path) -> None:
    distiller = build('gap', tmp_path, augment=False, loss_weights=dict(detection=0, area=0))
    calls, batch = watch(distiller, 'distill'), rival_batch(distiller, 'gap')
    losses = distiller(**batch, mode='loss')
    student, teacher = calls[0].args[:2]
    expected = (distiller.adapter(student.features[0]) - teacher.features[0]).square().mean()
    torch.testing.assert_close(losses['loss_sokd_feature'], expected)
    assert set(own(losses, 'sokd')) == {'loss_sokd_feature'} and distiller.detector is None
    assert_nothing_is_unused(distiller, batch)


# ----------------------------------------------------------------------------------------- behaviour


@pytest.mark.parametrize('kind', KINDS)
def test_it_behaves_at_every_site(tmp_path: Path, kind: str) -> None:
    config = rival_config('SoKDDistiller', kind, tmp_path, search_iters=3)
    distiller = assert_behaves(config, kind, 'sokd', {'_feature', '_detection', '_area', '_probability'})
    assert isinstance(distiller.site, NeckSite) == (kind in DETECTORS)
    figures = own(distiller(**rival_batch(distiller, kind), mode='loss'), 'sokd')
    assert 0 < float(figures['sokd_area']) <= 1 and 0 < float(figures['sokd_probability']) < 1


def test_the_policy_is_searched_first_and_frozen_then(tmp_path: Path) -> None:
    distiller = build('gap', tmp_path, search_iters=2)
    batch, draws = rival_batch(distiller, 'gap'), watch(distiller.augment, '_draw')
    policies = [distiller.augment.policy.clone()]
    for _ in range(4):
        train(distiller, batch, steps=1)
        policies.append(distiller.augment.policy.clone())
    assert [torch.equal(a, b) for a, b in pairwise(policies)] == [False, False, True, True]
    assert len({tuple(call.result[1].flatten().tolist()) for call in draws}) > 2  # still drawn from
    distiller.eval()  # a loss for validation searches nothing
    distiller.iteration.zero_()
    distiller._clock = None
    distiller(**batch, mode='loss')
    assert torch.equal(distiller.augment.policy, policies[-1])


def test_a_resumed_run_continues_alike(tmp_path: Path) -> None:
    one, other = (build('gap', tmp_path, search_iters=3) for _ in range(2))
    batch = rival_batch(one, 'gap')
    train(one, batch, steps=2)
    other.load_state_dict(copy.deepcopy(one.state_dict()))
    for log, again in zip(*(train(distiller, batch, steps=3, lr=0.01) for distiller in (one, other)), strict=True):
        torch.testing.assert_close(log, again, rtol=0, atol=0)
    assert torch.equal(one.augment.policy, other.augment.policy) and int(one.augment.updates) == 3


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    'unknown_weight': (dict(loss_weights=dict(kd=1)), r"weights of \['area', 'detection', 'feature'\].*got {'kd': 1}"),
    'no_weight': (dict(loss_weights=dict(feature=0, detection=0, area=0)), 'a positive loss weight'),
    'negative_weight': (dict(loss_weights=dict(feature=-1)), 'not negative'),
    'negative_search': (dict(search_iters=-1), 'search_iters >= 0'),
    'untrained_heads': (dict(loss_weights=dict(detection=0)), "learn from the loss 'detection' alone"),
    'no_areas': (dict(detector=dict(num_areas=0)), 'num_areas of AreaDetector must be at least 1'),
}


@pytest.mark.parametrize('case', REFUSED)
def test_what_cannot_be_is_refused(tmp_path: Path, case: str) -> None:
    switches, words = REFUSED[case]
    with pytest.raises(ValueError, match=words):
        build('gap', tmp_path, **switches)


@pytest.mark.parametrize(
    ('kind', 'site', 'words'),
    [
        ('vit', None, r"the student's feature.* is one vector .*site=dict\(feature="),
        pytest.param('faster_rcnn', dict(type='dskd_mm.TwoStageDetectionSite'), 'dskd_mm.NeckSite', marks=needs_mmdet),
    ],
)
def test_vectors_are_refused(tmp_path: Path, kind: str, site: dict | None, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build(kind, tmp_path, **(dict(site=site) if site else {}))


def test_a_teacher_of_vectors_is_refused_when_it_is_loaded(tmp_path: Path) -> None:
    config = dict(student=classifier_config(), teacher=random_teacher(str(tmp_path), kind='vit'))
    distiller = MODELS.build(dict(type='dskd_mm.SoKDDistiller', **config))
    with pytest.raises(ValueError, match="the teacher's feature"):
        distiller.load_teacher()
