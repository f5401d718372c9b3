"""VkD: its projector, its normalisations and its losses against plain computations, and training at every site."""

import copy

import numpy as np
import pytest
import torch
from rival_checks import assert_behaves, assert_survives_nothing, needs_mmdet, needs_mmseg, rival_config
from scipy.special import log_softmax, softmax
from torch import nn
from torch.nn.utils import parametrizations

from dskd_mm.distillers.vkd import OrthogonalProjection, smooth_l1, whiten
from dskd_mm.functional import standardize
from dskd_mm.structures import ModelOutputs, Target
from dskd_mm.utils.checkpoint import load_checkpoint_file
from support import assert_refused, build_distiller, distiller_run_config, toy_runner

METHOD = 'VkDDistiller'
DENSE = dict(type='dskd_mm.DenseDetectionSite')


def no_head_loss(maps):
    raise AssertionError('VkD asks no head')


# ------------------------------------------------------------------------------------------- the projector


@pytest.mark.parametrize(('channels', 'wanted'), [(4, 9), (9, 4), (6, 6)])
@pytest.mark.parametrize('optimizer', ['sgd', 'adamw'])
@pytest.mark.parametrize('orthogonal_map', ['cayley', 'matrix_exp'])
def test_projector_stays_orthonormal_while_it_learns(channels, wanted, optimizer, orthogonal_map):
    torch.manual_seed(0)
    projector = OrthogonalProjection(channels, wanted, orthogonal_map)
    before = projector.linear.weight.detach().clone()
    if optimizer == 'sgd':
        updates = torch.optim.SGD(projector.parameters(), lr=0.3, momentum=0.9, weight_decay=1e-2)
    else:
        updates = torch.optim.AdamW(projector.parameters(), lr=0.1, weight_decay=0.1)
    x, y = torch.randn(5, channels, 7), torch.randn(5, wanted, 7)
    losses = []
    for _ in range(20):
        loss = (projector(x) - y).square().mean()
        updates.zero_grad()
        loss.backward()
        updates.step()
        losses.append(float(loss))
    weight = projector.linear.weight.detach()
    assert weight.shape == (wanted, channels)
    gram = weight.T @ weight if wanted >= channels else weight @ weight.T
    torch.testing.assert_close(gram, torch.eye(min(channels, wanted)), rtol=0, atol=1e-5)
    assert (weight - before).abs().max() > 0.05 and min(losses) < losses[0]


@pytest.mark.parametrize(('channels', 'wanted'), [(4, 9), (9, 4), (6, 6)])
def test_cayley_map_is_that_of_pytorch(channels, wanted):
    """In values and gradients; a checkpoint of the one is one of the other."""
    ours = OrthogonalProjection(channels, wanted).linear
    theirs = parametrizations.orthogonal(nn.Linear(channels, wanted, bias=False), orthogonal_map='cayley')
    torch.nn.init.normal_(ours.parametrizations.weight.original)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    factor = torch.randn(wanted, channels)
    for linear in (ours, theirs):
        (linear.weight * factor).sum().backward()
    torch.testing.assert_close(ours.weight, theirs.weight)
    first, second = (linear.parametrizations.weight.original.grad for linear in (ours, theirs))
    assert first.abs().max() > 0
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)


def test_projector_is_a_matrix_product_that_keeps_lengths():
    projector = OrthogonalProjection(3, 5)
    x = torch.randn(2, 3, 4)
    found = projector(x)
    weight = projector.linear.weight.detach().numpy()
    for b in range(2):
        for n in range(4):
            np.testing.assert_allclose(found[b, :, n].detach().numpy(), weight @ x[b, :, n].numpy(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.norm(dim=1), x.norm(dim=1))


def test_copies_reloads_and_half_precision_leave_the_projector_orthogonal():
    projector = OrthogonalProjection(6, 16)
    x = torch.randn(2, 6, 5)
    copied, other = copy.deepcopy(projector), OrthogonalProjection(6, 16)
    other.load_state_dict(projector.state_dict(), strict=True)
    for same in (copied, other):
        torch.testing.assert_close(same(x), projector(x))
    with torch.no_grad():  # a copy is a copy
        copied.linear.parametrizations.weight.original.add_(1.0)
    assert not torch.allclose(copied(x), projector(x))
    with torch.autocast('cpu', torch.bfloat16):
        found = projector(x.bfloat16())
        assert found.dtype == torch.float32
    torch.testing.assert_close(found, projector(x.bfloat16().float()))


def test_the_parametrization_that_weight_decay_breaks_is_refused():
    with pytest.raises(ValueError, match="'cayley' or 'matrix_exp', but got 'householder'"):
        OrthogonalProjection(3, 5, 'householder')


def test_a_resumed_run_with_weight_decay_and_averaging_equals_an_uninterrupted_one(tmp_path):
    config = distiller_run_config(str(tmp_path))
    config.model.type = 'dskd_mm.VkDDistiller'
    config.optim_wrapper.optimizer.weight_decay = 0.1
    options = dict(custom_hooks=[dict(type='EMAHook', momentum=0.5, update_buffers=True)])
    whole = toy_runner(config, work_dir=str(tmp_path / 'whole'), **options)
    whole.train()
    toy_runner(config, work_dir=str(tmp_path / 'part'), train_cfg__max_epochs=1, **options).train()
    resumed = toy_runner(config, work_dir=str(tmp_path / 'part'), resume=True, **options)
    resumed.train()
    saved = [load_checkpoint_file(str(tmp_path / name / 'epoch_2.pth')) for name in ('whole', 'part')]
    for part in ('state_dict', 'ema_state_dict'):
        left, right = (checkpoint[part] for checkpoint in saved)
        assert left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left)
    averaged = next(hook.ema_model for hook in resumed.hooks if hasattr(hook, 'ema_model')).module
    for model in (resumed.model, averaged):
        weight = model.projectors[0].linear.weight.detach()
        torch.testing.assert_close(weight.T @ weight, torch.eye(weight.shape[1]), rtol=0, atol=1e-5)
    moved = [model.projectors[0].linear.parametrizations.weight.original for model in (resumed.model, averaged)]
    assert not torch.equal(*moved)


# -------------------------------------------------------------------------------------- the normalisations


def test_standardize_is_that_of_all_tokens():
    x = 3 * torch.randn(3, 4, 6) + torch.arange(4.0)[None, :, None]
    found = standardize(x).numpy()
    for channel in range(4):
        tokens = np.array([float(x[b, channel, n]) for b in range(3) for n in range(6)])
        expected = (tokens - tokens.mean()) / tokens.std()
        np.testing.assert_allclose(found[:, channel].flatten(), expected, rtol=1e-4, atol=1e-4)


def test_whitened_channels_are_uncorrelated():
    torch.manual_seed(0)
    mix = torch.randn(5, 5)
    x = torch.einsum('ij,bjn->bin', mix, torch.randn(8, 5, 50)) + 2
    found = whiten(x, shrinkage=0.0).transpose(0, 1).flatten(1).numpy()
    np.testing.assert_allclose(found.mean(axis=1), np.zeros(5), atol=1e-4)
    np.testing.assert_allclose(np.cov(found, bias=True), np.eye(5), atol=1e-3)
    vectors = x.transpose(0, 1).flatten(1).numpy()
    factor = np.linalg.cholesky(np.cov(vectors, bias=True))
    expected = np.linalg.inv(factor) @ (vectors - vectors.mean(axis=1, keepdims=True))
    np.testing.assert_allclose(found, expected, rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize('shape', [(2, 9, 1), (1, 4, 1), (2, 3, 4)])
def test_whitening_too_few_or_equal_vectors_is_finite(shape):
    assert torch.isfinite(whiten(torch.randn(shape))).all()
    assert torch.equal(whiten(torch.ones(shape)), torch.zeros(shape))


def test_nothing_to_compare_is_a_zero_in_the_graph():
    projector = OrthogonalProjection(3, 5)
    for normalize in (standardize, lambda x: x):
        loss = smooth_l1(normalize(projector(torch.zeros(0, 3, 1))), torch.zeros(0, 5, 1))
        loss.backward()
        assert loss == 0
        assert torch.equal(projector.linear.parametrizations.weight.original.grad, torch.zeros(5, 3))


# ---------------------------------------------------------------------------------------- a straight line


def plain_smooth_l1(a, b):
    d = np.abs(a - b)
    return np.where(d < 1, 0.5 * d**2, d - 0.5).mean()


def plain_layer_norm(x):
    """(B, C, N)."""
    return (x - x.mean(axis=1, keepdims=True)) / np.sqrt(x.var(axis=1, keepdims=True) + 1e-5)


@pytest.mark.parametrize('pool', [None, False])
def test_losses_of_classification_are_the_formula(tmp_path, pool):
    distiller = build_distiller(rival_config(METHOD, 'gap', tmp_path, pool=pool, loss_weights=dict(feature=2.0, logit=0.5)))
    torch.manual_seed(0)
    ours, theirs = torch.randn(4, 16, 3, 2), 3 * torch.randn(4, 24, 3, 2)
    logits, opinion = torch.randn(4, 5), 2 * torch.randn(4, 5)
    found = distiller.distill(
        ModelOutputs([ours], [logits]), ModelOutputs([theirs], [opinion]), Target(torch.eye(5)[:4]), no_head_loss
    )
    a, b = ours.flatten(2).numpy(), theirs.flatten(2).numpy()
    if pool is None:
        a, b = a.mean(axis=2, keepdims=True), b.mean(axis=2, keepdims=True)
    projected = np.einsum('ij,bjn->bin', distiller.projectors[0].linear.weight.detach().numpy(), a)
    assert float(found['loss_vkd_feature']) == pytest.approx(2.0 * plain_smooth_l1(projected, plain_layer_norm(b)), rel=1e-4)
    p = softmax(opinion.numpy(), axis=1)
    kl = (p * (np.log(p) - log_softmax(logits.numpy(), axis=1))).sum() / 4
    assert float(found['loss_vkd_logit']) == pytest.approx(0.5 * kl, rel=1e-4)


@needs_mmdet
def test_each_level_has_its_projector_and_is_standardised_by_itself(tmp_path):
    """A scale and a bias of each channel after the projection, as the authors have them, change nothing then."""
    distiller = build_distiller(rival_config(METHOD, 'retinanet', tmp_path))
    torch.manual_seed(0)
    sizes = [(4, 6), (3, 3), (2, 3), (2, 2), (1, 3)]
    ours, theirs = ([torch.randn(2, c, *size) * (i + 1) for i, size in enumerate(sizes)] for c in (8, 12))
    (found,) = distiller.distill(ModelOutputs(ours), ModelOutputs(theirs), None, no_head_loss).values()
    weights = [projector.linear.weight.detach().numpy() for projector in distiller.projectors]
    assert len(weights) == 5 and not np.allclose(weights[0], weights[1])
    expected = 0.0
    for level, wanted, weight in zip(ours, theirs, weights, strict=True):
        tokens = np.einsum('ij,bjn->bin', weight, level.flatten(2).numpy())
        tokens = tokens * np.linspace(0.5, 2, 12)[:, None] + np.linspace(-1, 1, 12)[:, None]
        sides = []
        for side in (tokens, wanted.flatten(2).numpy()):
            mean, std = (getattr(side, name)(axis=(0, 2), keepdims=True) for name in ('mean', 'std'))
            sides.append((side - mean) / std)
        expected += 4.0 * plain_smooth_l1(*sides)
    assert float(found) == pytest.approx(expected, rel=1e-3)


# ------------------------------------------------------------------------------------------- at every site


@pytest.mark.parametrize(
    ('kind', 'switches', 'names'),
    [
        ('gap', {}, {'_feature', '_logit'}),
        ('gap', dict(normalization='whiten', pool=False), {'_feature', '_logit'}),
        ('vit', {}, {'_feature', '_logit'}),
        ('multi_label', {}, {'_feature', '_logit'}),
        pytest.param('fcn', {}, {'_feature', '_logit'}, marks=needs_mmseg),
        pytest.param('binary', {}, {'_feature', '_logit'}, marks=needs_mmseg),
        pytest.param('retinanet', {}, {'_feature'}, marks=needs_mmdet),
        pytest.param('retinanet', dict(site=DENSE), {'_feature', '_logit'}, marks=needs_mmdet),
        pytest.param('faster_rcnn', {}, {'_feature'}, marks=needs_mmdet),
        pytest.param(
            'faster_rcnn', dict(site=dict(type='dskd_mm.TwoStageDetectionSite')), {'_feature', '_logit'}, marks=needs_mmdet
        ),
    ],
)
def test_it_trains_and_resumes_at_every_site(tmp_path, kind, switches, names):
    distiller = assert_behaves(rival_config(METHOD, kind, tmp_path, **switches), kind, 'vkd', names)
    weight = distiller.projectors[0].linear.weight
    torch.testing.assert_close(weight.T @ weight, torch.eye(weight.shape[1]), rtol=0, atol=1e-5)


@needs_mmdet
@pytest.mark.parametrize('switches', [{}, dict(site=DENSE)])
def test_images_without_objects(tmp_path, switches):
    assert_survives_nothing(rival_config(METHOD, 'retinanet', tmp_path, **switches), 'retinanet', 'vkd')


@pytest.mark.parametrize(
    ('spoil', 'words'),
    [
        (dict(normalization='batch'), ["'layernorm', 'standardize', 'whiten'", "'batch'"]),
        (dict(loss_weights=dict(kd=1.0)), ["'feature', 'logit'", "'kd'"]),
        (dict(loss_weights=dict(feature=-1.0)), ['not negative']),
        (dict(temperature=0.0), ['temperature']),
    ],
)
def test_unknown_switches_are_refused(tmp_path, spoil, words):
    assert_refused(rival_config(METHOD, 'gap', tmp_path), lambda config: config.update(spoil), words)


@needs_mmdet
def test_a_neck_has_no_logits(tmp_path):
    config = rival_config(METHOD, 'retinanet', tmp_path)
    assert_refused(config, lambda c: c.update(loss_weights=dict(logit=1.0)), ['NeckSite', 'loss_weights=dict(logit=0)'])
