"""Targets: what losses are divided by, their pieces, and the focus on hard predictions."""

import math
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from dskd_mm.functional import target_cross_entropy, total_divergence
from dskd_mm.structures import Target


@pytest.mark.parametrize(
    ('weight', 'count'),
    [(None, 6), (torch.zeros(2, 1, 3), 1), (torch.full((2, 1, 3), 0.5), 3)],
    ids=['all', 'none: at least 1', 'real'],
)
def test_normalizer_counts_locations_not_classes(weight, count):
    assert Target(torch.zeros(2, 5, 3), weight).normalizer() == count


@pytest.mark.parametrize(('count', 'expected'), [(7.5, 7.5), (0.0, 1.0), (0.2, 1.0)])
@pytest.mark.parametrize('weight', [None, torch.ones(2, 1, 3)])
def test_a_count_of_ones_own_is_what_losses_are_divided_by(count, expected, weight):
    target = Target(torch.rand(2, 5, 3), weight, torch.tensor(count))
    assert target.normalizer() == expected
    logits = torch.randn(2, 5, 3)
    plain = target_cross_entropy(logits, Target(target.probability, weight), sigmoid=True)
    torch.testing.assert_close(target_cross_entropy(logits, target, sigmoid=True), plain * 6 / expected)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(
    lengths=st.lists(st.integers(1, 5), min_size=1, max_size=4),
    weighted=st.booleans(),
    counted=st.booleans(),
    focus=st.sampled_from([0.0, 1.0]),
)
def test_pieces_are_the_levels_and_keep_the_rest(lengths, weighted, counted, focus):
    probability, weight = torch.rand(2, 3, sum(lengths)), torch.rand(2, 1, sum(lengths))
    count = torch.tensor(9.0) if counted else None
    pieces = Target(probability, weight if weighted else None, count, focus).split(lengths)
    assert torch.equal(torch.cat([piece.probability for piece in pieces], dim=2), probability)
    assert [piece.probability.shape[2] for piece in pieces] == lengths
    for piece, w in zip(pieces, weight.split(lengths, dim=2), strict=True):
        assert torch.equal(piece.weight, w) if weighted else piece.weight is None
        assert piece.avg_factor is count
        assert piece.focus == focus


def test_a_target_of_images_is_one_piece():
    target = Target(torch.rand(4, 3), torch.rand(4, 1))
    assert target.split([16]) == [target]


def by_hand(logits: Tensor, q: Tensor, w: Tensor, focus: float, count: float, temperature: float) -> float:
    """The focused cross-entropy in plain loops, for (B, K, M)."""
    total = 0.0
    for b in range(len(q)):
        for k in range(q.shape[1]):
            for m in range(q.shape[2]):
                p = 1 / (1 + math.exp(-float(logits[b, k, m]) / temperature))
                y = float(q[b, k, m])
                entropy = -(y * math.log(p) + (1 - y) * math.log(1 - p))
                total += float(w[b, 0, m]) * abs(y - p) ** focus * entropy
    return total / count * temperature**2


@pytest.mark.parametrize('focus', [0.5, 1.0, 2.0])
@pytest.mark.parametrize('temperature', [1.0, 3.0])
def test_focus_is_the_plain_loop(focus, temperature):
    torch.manual_seed(0)
    logits, q = 2 * torch.randn(2, 3, 4), torch.rand(2, 3, 4)
    w = torch.rand(2, 1, 4) * (torch.rand(2, 1, 4) > 0.3)
    target = Target(q, w, torch.tensor(3.0), focus)
    loss = target_cross_entropy(logits, target, True, temperature)
    assert float(loss) == pytest.approx(by_hand(logits, q, w, focus, 3.0, temperature), rel=1e-4)


@pytest.mark.parametrize('beta', [1.0, 2.0])
@pytest.mark.parametrize('temperature', [1.0, 2.0])
def test_focus_is_mmdets_quality_focal_loss_with_its_gradient(beta, temperature):
    losses = pytest.importorskip('mmdet.models.losses')
    torch.manual_seed(0)
    batch, classes, count = 2, 4, 6
    labels = torch.tensor([[0, 4, 4, 2, 4, 3], [4, 4, 1, 4, 4, 4]])  # 4 is background
    scores = torch.rand(batch, count) * (labels < classes)
    weight = torch.tensor([[1.0, 1, 1, 1, 0, 1], [1, 0, 1, 1, 1, 0.5]])
    logits = torch.randn(batch, classes, count, requires_grad=True)

    flat = (logits / temperature).transpose(1, 2).reshape(-1, classes)
    reference = losses.QualityFocalLoss(beta=beta)
    pair = (labels.flatten(), scores.flatten())
    expected = reference(flat, pair, weight=weight.flatten(), avg_factor=3.0) * temperature**2
    (gradient,) = torch.autograd.grad(expected, logits)

    one_hot = F.one_hot(labels, classes + 1)[..., :classes] * scores[..., None]
    target = Target(one_hot.transpose(1, 2), weight[:, None], torch.tensor(3.0), beta)
    loss = target_cross_entropy(logits, target, True, temperature)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], gradient)


@pytest.mark.parametrize('focus', [0.5, 1.0, 2.0])
def test_focus_leaves_nothing_where_the_prediction_is_the_target(focus):
    logits = torch.tensor([[[0.0, 40.0, -40.0, 200.0, -200.0]]], requires_grad=True)
    loss = target_cross_entropy(logits, Target(logits.detach().sigmoid(), focus=focus), sigmoid=True)
    assert 0 <= loss < 1e-12
    loss.backward()
    torch.testing.assert_close(logits.grad, torch.zeros_like(logits), rtol=0, atol=1e-12)


def test_focus_weighs_easy_background_little():
    """Against a plain cross-entropy: a background at p = 0.01 by a hundredth, one that is missed hardly less."""
    for p in (0.01, 0.9):
        logits = torch.full((1, 1, 1), math.log(p / (1 - p)))
        plain, focused = (target_cross_entropy(logits, Target(torch.zeros(1, 1, 1), focus=f), True) for f in (0.0, 1.0))
        assert float(focused / plain) == pytest.approx(p, rel=1e-4)


def test_exclusive_classes_have_no_focus():
    logits, q = torch.randn(2, 5), torch.eye(5)[:2]
    assert torch.equal(target_cross_entropy(logits, Target(q, focus=1.0)), target_cross_entropy(logits, Target(q)))


@pytest.mark.parametrize('focus', [0.0, 1.0])
def test_predictions_of_all_levels_are_the_sum_of_the_pieces(focus):
    """As long as all are divided by the same count."""
    torch.manual_seed(0)
    logits, lengths = torch.randn(2, 3, 9), [6, 2, 1]
    target = Target(torch.rand(2, 3, 9), (torch.rand(2, 1, 9) > 0.3).float(), torch.tensor(4.0), focus)
    pieces = zip(logits.split(lengths, dim=2), target.split(lengths), strict=True)
    torch.testing.assert_close(
        target_cross_entropy(logits, target, True), sum(target_cross_entropy(part, piece, True) for part, piece in pieces)
    )


@pytest.mark.parametrize('chunk', [1, 7, 10**6])
@pytest.mark.parametrize('shape', [(4, 5), (2, 3, 7), (2, 3, 4, 5)], ids=str)
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('sigmoid', [False, True])
def test_the_gradient_that_comes_with_the_value_is_autograds(monkeypatch, chunk, shape, dtype, sigmoid):
    monkeypatch.setattr('dskd_mm.functional.CHUNK', chunk)
    torch.manual_seed(0)
    logits = (2 * torch.randn(shape)).to(dtype).requires_grad_()
    weight = torch.rand(shape[0], 1, *shape[2:]) * (torch.rand(shape[0], 1, *shape[2:]) > 0.3)
    target = Target(torch.randn(shape).softmax(dim=1), weight, focus=1.0 if sigmoid else 0.0)
    expected = total_divergence(logits, target, sigmoid, 3.0) / weight.sum().clamp(min=1) * 9
    (wanted,) = torch.autograd.grad(0.7 * expected, logits)
    loss = target_cross_entropy(logits, target, sigmoid, 3.0)
    (found,) = torch.autograd.grad(0.7 * loss, logits)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(found, wanted)
    assert found.dtype == dtype and found.abs().max() > 0


@pytest.mark.parametrize('shape', [(0, 5), (2, 3, 0)], ids=str)
def test_without_predictions_the_loss_is_a_zero_in_the_graph(shape):
    logits = torch.zeros(shape, requires_grad=True)
    loss = target_cross_entropy(logits, Target(torch.zeros(shape)))
    loss.backward()
    assert loss == 0 and logits.grad.shape == shape


def test_a_target_in_the_graph_is_trained_too():
    torch.manual_seed(0)
    source, logits = torch.randn(2, 3, 4, requires_grad=True), torch.randn(2, 3, 4, requires_grad=True)
    target_cross_entropy(logits, Target(source.softmax(dim=1))).backward()
    assert source.grad.abs().max() > 0 and logits.grad.abs().max() > 0


def test_nothing_but_the_gradient_is_kept_of_the_predictions():
    logits, kept = torch.randn(2, 30, 50, requires_grad=True), []
    target = Target(torch.rand(2, 30, 50), torch.ones(2, 1, 50), focus=1.0)

    class Kept:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor
            kept.append(weakref.ref(self))

    with torch.autograd.graph.saved_tensors_hooks(Kept, lambda holder: holder.tensor):
        loss = target_cross_entropy(logits, target, sigmoid=True)
    alive = [ref().tensor.numel() for ref in kept if ref() is not None]
    assert len(kept) > 5
    assert sum(alive) < 1.1 * logits.numel()
    loss.backward()
