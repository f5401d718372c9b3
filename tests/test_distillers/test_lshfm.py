"""LSHFM: its loss against a plain loop, which vectors count, and training at every site."""

import math

import numpy as np
import pytest
import torch
from rival_checks import assert_behaves, assert_survives_nothing, needs_mmdet, needs_mmseg, rival_batch, rival_config
from torch.nn import functional as F

from dskd_mm.distillers.lshfm import is_correct
from dskd_mm.features import Pyramid
from dskd_mm.losses import LSHDistillLoss
from dskd_mm.structures import ModelOutputs, Target
from support import assert_refused, build_distiller

METHOD = 'LSHFMDistiller'
LABELS = [0, 1, 2, 3]


def no_head_loss(maps):
    raise AssertionError('LSHFM asks no head')


def plain_loss(ours, theirs, projection, count, magnitude=1.0):
    """The loss of the vectors (M, D) whose entry in ``count`` is true, bit by bit."""
    total, bits = 0.0, 0
    kept = [i for i, counts in enumerate(count) if counts]
    for i in kept:
        a, wanted = projection @ ours[i], projection @ theirs[i] > 0
        for value, bit in zip(a, wanted, strict=True):
            total += math.log1p(math.exp(-abs(value))) + max(-value if bit else value, 0.0)
            bits += 1
    loss = total / max(bits, 1)
    if kept:
        loss += magnitude * np.mean((ours[kept] - theirs[kept]) ** 2)
    return loss


@pytest.mark.parametrize('correct', [None, [True, False, True, True], [False] * 4])
@pytest.mark.parametrize('beta', [None, 6.0])
def test_loss_of_pooled_maps_is_the_plain_loop(tmp_path, correct, beta):
    switches = dict(beta=beta, correct_only=correct is not None, lsh=dict(bits=64))
    distiller = build_distiller(rival_config(METHOD, 'gap', tmp_path, **switches))
    distiller.load_teacher()
    torch.manual_seed(0)
    ours, theirs = torch.randn(4, 16, 3, 2, requires_grad=True), 2 * torch.randn(4, 24, 3, 2)
    opinion = 0.1 * torch.randn(4, 5)
    for image, right in enumerate(correct or []):
        opinion[image, LABELS[image] if right else LABELS[image] + 1] += 3
    target = Target(torch.eye(5)[LABELS])
    found = distiller.distill(
        ModelOutputs([ours], [torch.randn(4, 5)]), ModelOutputs([theirs], [opinion]), target, no_head_loss
    )
    (layer,) = distiller.align.layers[:1]
    a = F.linear(ours.mean(dim=(2, 3)), layer.weight.flatten(1), layer.bias).detach().double().numpy()
    (classifier,) = distiller.teacher.classifiers
    projection = (distiller.lsh.projection * classifier.weight.std()).double().numpy()
    expected = plain_loss(a, theirs.mean(dim=(2, 3)).double().numpy(), projection, correct or [True] * 4)
    assert float(found['loss_lshfm_mimic']) == pytest.approx((beta or 5.0) * expected, rel=1e-4)
    found['loss_lshfm_mimic'].backward()
    assert ours.grad is not None and torch.isfinite(ours.grad).all()
    assert [bool(grad.any()) for grad in ours.grad] == (correct or [True] * 4)


@needs_mmdet
def test_a_neighbourhood_is_that_of_the_classifier_in_every_level(tmp_path):
    distiller = build_distiller(rival_config(METHOD, 'retinanet', tmp_path))
    levels = [torch.randn(2, 12, 3, 4), torch.randn(2, 12, 2, 1)]
    found = distiller._neighbourhoods(Pyramid.of(levels), Pyramid.pack(levels))
    assert found.shape == (2, 12 * 9, 14) and distiller.lsh.projection.shape == (4096, 12 * 9)
    column = 0
    for level in levels:
        padded = np.pad(level.numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)))
        for y in range(level.shape[2]):
            for x in range(level.shape[3]):
                np.testing.assert_array_equal(found[:, :, column], padded[:, :, y : y + 3, x : x + 3].reshape(2, -1))
                column += 1


@pytest.mark.parametrize(
    ('logits', 'probability', 'expected'),
    [
        ([[1.0, 2.0, 0.0]], [[0.0, 1.0, 0.0]], [1.0]),
        ([[3.0, 2.0, 0.0]], [[0.0, 1.0, 0.0]], [0.0]),
        ([[3.0, 2.0, 0.0]], [[0.6, 0.4, 0.0]], [1.0]),  # mixed images: the main class
        ([[1.0, 2.0, 0.0]], [[0.6, 0.4, 0.0]], [0.0]),
        ([[1.0, 2.0, 0.0]], [[0.0, 0.0, 0.0]], [0.0]),  # ignored
    ],
)
def test_what_a_teacher_gets_right(logits, probability, expected):
    logits, target = torch.tensor(logits), torch.tensor(probability)
    assert is_correct(logits, Target(target)).flatten().tolist() == expected
    maps = is_correct(logits[:, :, None].expand(-1, -1, 2), Target(target[:, :, None].expand(-1, -1, 2)))
    assert maps.shape == (1, 1, 2) and maps.flatten().tolist() == expected * 2


@pytest.mark.parametrize(
    ('kind', 'site', 'beta', 'shape', 'bias'),
    [
        ('gap', None, 5.0, (2048, 24), 'zero'),
        ('multi_label', None, 3.0, (2048, 24), 'median'),
        pytest.param('fcn', None, 5.0, (2048, 12), 'zero', marks=needs_mmseg),
        pytest.param('retinanet', None, 7.0, (4096, 12 * 9), 'zero', marks=needs_mmdet),
        pytest.param('faster_rcnn', None, 7.0, (4096, 24), 'zero', marks=needs_mmdet),
        pytest.param('retinanet', dict(type='dskd_mm.NeckSite'), 5.0, (2048, 12), 'zero', marks=needs_mmdet),
    ],
)
def test_defaults_are_the_papers(tmp_path, kind, site, beta, shape, bias):
    distiller = build_distiller(rival_config(METHOD, kind, tmp_path, **(dict(site=site) if site else {})))
    assert (distiller.options.beta, tuple(distiller.lsh.projection.shape), distiller.lsh.bias) == (beta, shape, bias)
    assert distiller.lsh.magnitude == 1.0


@pytest.mark.parametrize(
    ('kind', 'switches'),
    [
        ('gap', {}),
        ('gap', dict(correct_only=True, lsh=dict(bits=128, bias='median', magnitude=0.0))),
        ('vit', dict(lsh=dict(bias='mean'))),
        ('multi_label', {}),
        pytest.param('fcn', {}, marks=needs_mmseg),
        pytest.param('fcn', dict(correct_only=True), marks=needs_mmseg),
        pytest.param('retinanet', {}, marks=needs_mmdet),
        pytest.param('retinanet', dict(site=dict(type='dskd_mm.NeckSite')), marks=needs_mmdet),
        pytest.param('retinanet', dict(lsh=dict(project='null')), marks=needs_mmdet),
        pytest.param('faster_rcnn', {}, marks=needs_mmdet),
        pytest.param('faster_rcnn', dict(correct_only=True), marks=needs_mmdet),
    ],
)
def test_it_trains_and_resumes_at_every_site(tmp_path, kind, switches):
    config = rival_config(METHOD, kind, tmp_path, **switches)
    # A random teacher is hardly ever right.
    apart = ('_mimic',) if kind != 'faster_rcnn' and switches.get('correct_only') and never_right(config, kind) else ()
    assert_behaves(config, kind, 'lshfm', {'_mimic', '_bits'}, apart)


def never_right(config, kind):
    """Whether the random teacher classifies nothing correctly: then nothing counts."""
    distiller = build_distiller(config)
    return not bool(distiller(**rival_batch(distiller, kind), mode='loss')['loss_lshfm_mimic'])


@pytest.mark.parametrize(
    ('kind', 'switches'),
    [
        pytest.param('retinanet', {}, marks=needs_mmdet),
        pytest.param('faster_rcnn', dict(correct_only=True), marks=needs_mmdet),
        pytest.param('fcn', dict(lsh=dict(bias='median')), marks=needs_mmseg),
    ],
)
def test_images_without_annotations(tmp_path, kind, switches):
    losses = assert_survives_nothing(rival_config(METHOD, kind, tmp_path, **switches), kind, 'lshfm')
    if kind == 'fcn':
        assert losses['loss_lshfm_mimic'] == 0


@pytest.mark.parametrize(
    ('kind', 'spoil', 'words'),
    [
        ('gap', dict(beta=-1.0), ['beta >= 0', '-1.0']),
        ('multi_label', dict(correct_only=True), ['correct_only=False', 'independent']),
        pytest.param('retinanet', dict(correct_only=True), ['correct_only=False', '9'], marks=needs_mmdet),
        ('gap', dict(align=dict(kind='identity')), ['equal channels']),
    ],
)
def test_what_has_no_meaning_is_refused(tmp_path, kind, spoil, words):
    assert_refused(rival_config(METHOD, kind, tmp_path), lambda config: config.update(spoil), words)


@needs_mmdet
def test_a_projection_needs_kernels_of_one_size(tmp_path):
    distiller = build_distiller(rival_config(METHOD, 'retinanet', tmp_path, lsh=dict(project='null')))
    distiller.side, distiller.lsh = 5, LSHDistillLoss(12 * 25, project='null')  # as of a student with a 5x5 classifier
    with pytest.raises(ValueError, match=r'kernels of one size .* vectors have 300 numbers, .* see 108: leave project out'):
        distiller.load_teacher()
