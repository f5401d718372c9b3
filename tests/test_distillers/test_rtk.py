"""RTK's attention and loss against a loop over samples, students and teachers, and its behaviour at every site."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.registry import MODELS
from rival_checks import assert_behaves, assert_survives_nothing, needs_mmdet, needs_mmseg, own, rival_batch, rival_config
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

from dskd_mm.distillers.rtk import TeacherKeyAttention
from dskd_mm.features.norm import BatchNorm2d
from dskd_mm.sites import NeckSite
from dskd_mm.testing import random_batch
from support import build_distiller, watch

STAGES = (1, 2, 3)
STUDENT, TEACHER = (3, 5), (4, 8, 6)
"""Channels of the layers of a student and a teacher."""
SIZES = ((8, 6), (4, 3)), ((8, 6), (5, 5), (2, 4))
"""Their heights and widths: the student's maps grow as well as shrink, and in one case do both at once."""


def stages(widths: tuple[int, int] = (4, 6), first: int = 1) -> dict[str, dict]:
    """The argument layers for ResNets whose stages double their width."""
    names = ('student', 'teacher')
    return {
        f'stage{i + 1}': {
            name: dict(path=f'backbone.layer{i + first}', channels=w * 2**i) for name, w in zip(names, widths, strict=True)
        }
        for i in range(3)
    }


def random_maps(channels: tuple[int, ...], sizes: tuple[tuple[int, int], ...], batch: int = 3, seed: int = 0) -> list[Tensor]:
    source = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, c, *size, generator=source) for c, size in zip(channels, sizes, strict=True)]


def build_attention(norm: str = 'BN', top_k: int = 2) -> TeacherKeyAttention:
    """An attention with random norms, which would otherwise leave their scale and shift out of the comparison."""
    torch.manual_seed(0)
    module = TeacherKeyAttention(STUDENT, TEACHER, embed_dims=8, top_k=top_k, norm=norm)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.7)
    return module


# ----------------------------------------------------------------------------------------- a loop


def normalise(vectors: np.ndarray, module: nn.Module) -> np.ndarray:
    """A batch norm over samples or a group norm over the groups of each sample, (B, d)."""
    weight, bias = (p.detach().double().numpy() for p in (module.weight, module.bias))
    result = np.empty_like(vectors)
    if isinstance(module, nn.BatchNorm2d):
        for j in range(vectors.shape[1]):
            result[:, j] = (vectors[:, j] - vectors[:, j].mean()) / math.sqrt(vectors[:, j].var() + module.eps)
    else:
        length = vectors.shape[1] // module.num_groups
        for b in range(len(vectors)):
            for j in range(0, vectors.shape[1], length):
                group = vectors[b, j : j + length]
                result[b, j : j + length] = (group - group.mean()) / math.sqrt(group.var() + module.eps)
    return result * weight + bias


def embed(vectors: np.ndarray, layers: nn.Sequential) -> np.ndarray:
    matrix = layers[0].weight.detach().double().numpy()[:, :, 0, 0]
    return normalise(np.stack([matrix @ vector for vector in vectors]), layers[1])


def pooled(feature: Tensor) -> np.ndarray:
    return feature.double().numpy().mean(axis=(2, 3))


def energy(feature: Tensor, size: tuple[int, int]) -> np.ndarray:
    """Mean square over channels, pooled where it shrinks in both directions, else interpolated; of length 1."""
    mean = (feature.double() ** 2).mean(dim=1)[:, None]
    if mean.shape[2:] != size:
        shrinks = size[0] <= mean.shape[2] and size[1] <= mean.shape[3]
        mean = F.adaptive_avg_pool2d(mean, size) if shrinks else F.interpolate(mean, size, mode='bilinear')
    flat = mean.numpy().reshape(len(mean), -1)
    return np.stack([row / math.sqrt((row**2).sum()) for row in flat])


def by_loops(module: TeacherKeyAttention, student: list[Tensor], teacher: list[Tensor], k: int) -> tuple[float, np.ndarray]:
    """The loss and the attention of every sample, student layer and teacher layer."""
    batch, dims = len(student[0]), 8
    queries = [embed(pooled(h), layers) for h, layers in zip(student, module.queries, strict=True)]
    keys = [np.maximum(embed(pooled(h), layers), 0) for h, layers in zip(teacher, module.keys, strict=True)]
    keys = [embed(key, layers) for key, layers in zip(keys, module.bilinear, strict=True)]
    p_s, p_t = (p.detach().double().numpy() for p in (module.student_position, module.teacher_position))
    attention, loss = np.zeros((batch, len(student), len(teacher))), 0.0
    for b in range(batch):
        for s in range(len(student)):
            logits = [(queries[s][b] @ keys[t][b] + p_s[s] @ p_t[t]) / math.sqrt(dims) for t in range(len(teacher))]
            share = [math.exp(value) / sum(math.exp(other) for other in logits) for value in logits]
            kept = sorted(range(len(teacher)), key=lambda t: -share[t])[:k]
            for t in kept:
                attention[b, s, t] = share[t] / sum(share[other] for other in kept)
                size = tuple(teacher[t].shape[2:])
                difference = energy(student[s], size)[b] - energy(teacher[t], size)[b]
                loss += attention[b, s, t] * (difference**2).mean() / batch
    return loss, attention


@pytest.mark.parametrize('top_k', [2, 3])
@pytest.mark.parametrize('norm', ['BN', 'GN'])
def test_the_loss_against_loops(norm: str, top_k: int) -> None:
    module = build_attention(norm, top_k)
    student, teacher = random_maps(STUDENT, SIZES[0]), random_maps(TEACHER, SIZES[1], seed=1)
    loss, attention = module(student, teacher)
    expected, weights = by_loops(module, student, teacher, top_k)
    np.testing.assert_allclose(attention.detach().numpy(), weights, rtol=1e-4, atol=1e-6)
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-4)
    # Rows sum to 1 over the kept keys, which differ between samples: or the attention would not depend on them.
    torch.testing.assert_close(attention.sum(dim=2), torch.ones(3, 2))
    assert ((attention > 0).sum(dim=2) == top_k).all()
    assert (attention[0] - attention[1]).abs().max() > 0.05


def test_each_layer_of_the_student_is_a_term_of_its_own() -> None:
    """A student layer that looks like its keys costs nothing, whatever the channels, the size and the scale."""
    module = TeacherKeyAttention((4, 4), (8, 8), embed_dims=8, top_k=2)
    teacher = [torch.randn(3, 1, 6, 6).expand(-1, 8, -1, -1)] * 2
    like, other = 3 * teacher[0][:, :4], torch.randn(3, 4, 6, 6)
    assert float(module([like, like], teacher)[0].detach()) == pytest.approx(0, abs=1e-9)
    assert float(module([like, other], teacher)[0].detach()) > 1e-4


def test_gradients_reach_all_parts() -> None:
    module = build_attention()
    student = [h.requires_grad_() for h in random_maps(STUDENT, SIZES[0])]
    module(student, random_maps(TEACHER, SIZES[1], seed=1))[0].backward()
    assert [name for name, p in module.named_parameters() if p.grad is None or not p.grad.any()] == []
    assert all(bool(h.grad is not None and h.grad.any()) for h in student)


def test_nothing_waits_for_the_device() -> None:
    with FakeTensorMode():  # a tensor without values: reading one raises
        module = TeacherKeyAttention(STUDENT, TEACHER, embed_dims=8)
        loss, _ = module(random_fakes(STUDENT, SIZES[0]), random_fakes(TEACHER, SIZES[1]))
        assert loss.shape == ()


def random_fakes(channels: tuple[int, ...], sizes: tuple[tuple[int, int], ...]) -> list[Tensor]:
    return [torch.randn(2, c, *size) for c, size in zip(channels, sizes, strict=True)]


# ----------------------------------------------------------------------------------------- behaviour


def test_the_loss_has_the_weight_of_attention_feature_distillation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distiller = build_distiller(rival_config('RTKDistiller', 'gap', tmp_path, layers=stages()))
    assert distiller.attention.queries[0][0].out_channels == 128
    monkeypatch.setattr(distiller.attention, 'forward', lambda *maps: (torch.tensor(0.5), torch.full((3, 3, 3), 0.25)))
    losses = distiller(**rival_batch(distiller, 'gap'), mode='loss')
    assert (float(losses['loss_rtk_attention']), float(losses['rtk_top'])) == (200 * 0.5, 0.25)


@pytest.mark.parametrize('kind', ['gap', pytest.param('fcn', marks=needs_mmseg)])
def test_it_behaves_with_named_layers(tmp_path: Path, kind: str) -> None:
    config = rival_config('RTKDistiller', kind, tmp_path, layers=stages())
    distiller = assert_behaves(config, kind, 'rtk', {'_attention', '_top'})
    assert 0.5 <= float(distiller(**rival_batch(distiller, kind), mode='loss')['rtk_top']) <= 1
    norms = {type(layers[1]) for layers in distiller.attention.queries}
    assert norms == {BatchNorm2d if kind == 'gap' else nn.GroupNorm}


@needs_mmdet
@pytest.mark.parametrize('kind', ['retinanet', 'faster_rcnn'])
def test_it_behaves_at_the_levels_of_a_neck(tmp_path: Path, kind: str) -> None:
    config = rival_config('RTKDistiller', kind, tmp_path)
    distiller = assert_behaves(config, kind, 'rtk', {'_attention', '_top'})
    assert isinstance(distiller.site, NeckSite)
    assert len(distiller.attention.queries) == len(distiller.attention.keys) == 5
    assert_survives_nothing(config, kind, 'rtk')


@needs_mmdet
@pytest.mark.parametrize('kind', ['detr', 'retinanet'])
def test_levels_by_their_index_and_other_sites(tmp_path: Path, kind: str) -> None:
    """A module gives several maps, of which one is named by its number; a dense detector's own site has levels, too."""
    switches: dict[str, Any] = dict(site=dict(type='dskd_mm.DenseDetectionSite'))
    if kind == 'detr':
        widths = {'backbone': (32, 48), 'neck': (8, 12)}
        switches = dict(
            layers={
                path: {
                    name: dict(path=path, index=0, channels=width)
                    for name, width in zip(('student', 'teacher'), pair, strict=True)
                }
                for path, pair in widths.items()
            }
        )
    distiller = build_distiller(rival_config('RTKDistiller', kind, tmp_path, **switches))
    losses = own(distiller(**rival_batch(distiller, kind), mode='loss'), 'rtk')
    assert float(losses['loss_rtk_attention'].detach()) > 0
    assert len(distiller.attention.queries) == (2 if kind == 'detr' else 5)


def test_the_named_layers_are_compared_at_the_teachers_resolution(tmp_path: Path) -> None:
    distiller = build_distiller(rival_config('RTKDistiller', 'gap', tmp_path, layers=stages(), loss_weight=10.0))
    calls, seen = watch(distiller.attention, 'forward'), watch(distiller, 'distill')
    losses = distiller(**rival_batch(distiller, 'gap'), mode='loss')
    student, teacher = calls[0].args
    assert [h.shape[1:] for h in student] == [(4, 16, 16), (8, 8, 8), (16, 4, 4)]
    assert [h.shape[1:] for h in teacher] == [(6, 16, 16), (12, 8, 8), (24, 4, 4)]
    observed = seen[0].args[0].layers
    assert all(torch.equal(h, observed[f'stage{i}'][0]) for i, h in zip(STAGES, student, strict=True))
    torch.testing.assert_close(losses['loss_rtk_attention'], 10 * calls[0].result[0])


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    'no_layers': (dict(), r'got 1 level\(s\) of the site. Name several: layers=dict\(stage1='),
    'one_key': (dict(layers=stages(), top_k=1), 'top_k=1 .* at least 2'),
    'too_many_keys': (dict(layers=stages(), top_k=4), 'top_k=4 .* no more than there are, but got 3 named in layers'),
    'negative_weight': (dict(layers=stages(), loss_weight=-1.0), 'loss_weight of RTKDistiller'),
    'all_levels': (
        dict(layers=dict(a=dict(student=dict(path='backbone', channels=4, index='all'), teacher=dict(path='x', channels=1)))),
        r"layers.a has index='all'",
    ),
}


@pytest.mark.parametrize('case', REFUSED)
def test_what_cannot_be_is_refused(tmp_path: Path, case: str) -> None:
    switches, words = REFUSED[case]
    with pytest.raises(ValueError, match=words):
        MODELS.build(rival_config('RTKDistiller', 'gap', tmp_path, **switches))


@needs_mmdet
def test_a_neck_of_one_level_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r'got 1 level\(s\)'):
        MODELS.build(rival_config('RTKDistiller', 'detr', tmp_path))


@pytest.mark.parametrize(('norm', 'words'), [(None, "expect at least 2 images .* norm='GN'"), ('GN', '')])
def test_a_batch_of_one_image(tmp_path: Path, norm: str | None, words: str) -> None:
    config: ConfigDict = rival_config('RTKDistiller', 'gap', tmp_path, layers=stages(), norm=norm)
    distiller, (images, samples) = build_distiller(config), random_batch(1)
    if words:
        with pytest.raises(ValueError, match=words):
            distiller(images, samples, mode='loss')
        distiller.attention.eval()
    assert bool(distiller(images, samples, mode='loss')['loss_rtk_attention'].isfinite())
