"""The hashing loss against plain loops over vectors and bits."""

import math
import statistics
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dskd_mm.losses import LSHDistillLoss


def loop(loss: LSHDistillLoss, feature: Tensor, target: Tensor, center: list[float]) -> tuple[float, float]:
    """Mean cross-entropy of a = Wf + b against h = 1[Wf* + b > 0] with b = -center, and the share of equal bits."""
    rows = (loss.projection * loss.std).tolist()
    total, agree, count = 0.0, 0, 0
    for ours, theirs in zip(feature.tolist(), target.tolist(), strict=True):
        for row, middle in zip(rows, center, strict=True):
            a = sum(w * f for w, f in zip(row, ours, strict=True)) - middle
            h = sum(w * f for w, f in zip(row, theirs, strict=True)) - middle > 0
            p = 1 / (1 + math.exp(-a))
            total -= math.log(p if h else 1 - p)
            agree += (a > 0) == h
            count += 1
    return total / count, agree / count


def hash_values(loss: LSHDistillLoss, target: Tensor) -> list[list[float]]:
    """Wf* as one list of values a bit."""
    rows = (loss.projection * loss.std).tolist()
    return [[sum(w * f for w, f in zip(row, v, strict=True)) for v in target.tolist()] for row in rows]


@settings(derandomize=True, deadline=None, max_examples=40)
@given(
    vectors=st.integers(1, 5),
    channels=st.integers(1, 5),
    bits=st.integers(1, 7),
    std=st.sampled_from([0.05, 0.5]),
    magnitude=st.sampled_from([0.0, 0.7]),
    seed=st.integers(0, 2**16),
)
def test_loss_without_bias_is_the_plain_loop(vectors, channels, bits, std, magnitude, seed):
    torch.manual_seed(seed)
    loss = LSHDistillLoss(channels, bits, std, bias='zero', magnitude=magnitude)
    feature, target = torch.randn(2, vectors, channels)
    value, agreement = loss(feature, target)
    expected, share = loop(loss, feature, target, [0.0] * bits)
    pairs = zip(feature.flatten().tolist(), target.flatten().tolist(), strict=True)
    squares = [(a - b) ** 2 for a, b in pairs]
    assert float(value) == pytest.approx(expected + magnitude * sum(squares) / len(squares), rel=1e-4)
    assert float(agreement) == pytest.approx(share)


@pytest.mark.parametrize('bias', ['mean', 'median'])
def test_running_center_averages_first_batches_then_decays(bias):
    loss = LSHDistillLoss(3, bits=4, std=0.5, bias=bias, momentum=0.4)
    statistic = statistics.fmean if bias == 'mean' else statistics.median_low
    center = [0.0] * 4
    for batch in range(1, 5):
        feature, target = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(batch))
        rate = max(1 / batch, 0.4)
        new = [statistic(values) for values in hash_values(loss, target)]
        center = [(1 - rate) * c + rate * n for c, n in zip(center, new, strict=True)]
        value, agreement = loss(feature, target)
        expected, share = loop(loss, feature, target, center)
        assert float(value) == pytest.approx(expected, rel=1e-4)
        assert float(agreement) == pytest.approx(share)
    assert loss.center.tolist() == pytest.approx(center, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize('bias', ['mean', 'median'])
def test_first_batch_splits_every_bit_in_halves(bias):
    loss = LSHDistillLoss(8, bits=64, std=1.0, bias=bias)
    target = torch.randn(101, 8) + 3
    loss(target, target)
    above = (torch.nn.functional.linear(target, loss.projection) > loss.center).float().mean(dim=0)
    assert (above - 0.5).abs().max() < (0.25 if bias == 'mean' else 0.01)


@pytest.mark.parametrize('bias', ['zero', 'mean', 'median'])
def test_identical_vectors_agree_in_every_bit(bias):
    vectors = torch.randn(6, 5)
    assert LSHDistillLoss(5, bias=bias)(vectors, vectors)[1] == 1
    assert LSHDistillLoss(5, bias='zero')(vectors, -vectors)[1] == 0


def test_gradient_pulls_bits_to_the_target_and_leaves_the_target_alone():
    loss = LSHDistillLoss(5, std=0.3, bias='zero')
    feature, target = torch.randn(2, 8, 5).unbind()
    feature.requires_grad_()
    target.requires_grad_()
    value, before = loss(feature, target)
    value.backward()
    assert target.grad is None or target.grad.abs().max() == 0
    moved = feature.detach() - 20 * feature.grad
    after_value, after = loss(moved, target.detach())
    assert after_value < value.detach()
    assert after > before


def test_magnitude_tells_length_apart_and_bits_do_not():
    vectors = torch.randn(8, 5)
    assert LSHDistillLoss(5, bias='zero')(2 * vectors, vectors)[1] == 1
    plain = LSHDistillLoss(5, bias='zero')(2 * vectors, vectors)[0]
    full = LSHDistillLoss(5, bias='zero', magnitude=2.0)(2 * vectors, vectors)[0]
    torch.testing.assert_close(full - plain, 2 * vectors.square().mean())


@pytest.mark.parametrize('bias', ['zero', 'mean', 'median'])
def test_no_vectors_give_a_zero_in_the_graph(bias):
    loss = LSHDistillLoss(5, bias=bias)
    feature = torch.randn(3, 5, requires_grad=True)
    value, _ = loss(feature[:0], torch.randn(0, 5))
    assert value == 0
    value.backward()
    assert feature.grad.abs().max() == 0
    assert loss.num_batches == 0
    assert torch.isfinite(loss.center).all()


def test_projection_follows_from_the_seed_alone():
    torch.manual_seed(1)
    first = LSHDistillLoss(5, seed=3)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    second = LSHDistillLoss(5, seed=3)
    assert torch.equal(first.projection, second.projection)
    assert not torch.equal(first.projection, LSHDistillLoss(5, seed=4).projection)
    assert torch.equal(torch.get_rng_state(), state), 'the global generator was used'
    assert {'projection', 'std', 'center', 'num_batches'} == set(first.state_dict())
    assert list(first.parameters()) == []


@pytest.mark.parametrize('bias', ['zero', 'mean'])
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_vectors_are_hashed_in_float32(dtype, bias):
    """1e4 squared overflows in half precision, as do sums of many products."""
    feature, target = (torch.randn(2, 4, 512) * 1e4).to(dtype).unbind()
    settings = dict(std=5.0, bias=bias, magnitude=1.0)
    expected, _ = LSHDistillLoss(512, 16, **settings)(feature.float(), target.float())
    with torch.autocast('cpu', torch.bfloat16):
        value, _ = LSHDistillLoss(512, 16, **settings)(feature, target)
    assert value.dtype == torch.float32
    assert torch.isfinite(value)
    torch.testing.assert_close(value, expected)


def test_std_is_the_teachers_unless_given():
    weight = torch.randn(7, 5) * 0.2
    own, given_ = LSHDistillLoss(5), LSHDistillLoss(5, std=0.06)
    own.set_classifier(weight)
    given_.set_classifier(weight)
    assert float(own.std) == pytest.approx(statistics.stdev(weight.flatten().tolist()), rel=1e-5)
    assert float(given_.std) == pytest.approx(0.06)


def test_eval_mode_uses_the_center_and_does_not_move_it():
    loss = LSHDistillLoss(5, bits=8, std=0.5)
    feature, target = torch.randn(2, 6, 5)
    loss(feature, target + 2)
    center, count = loss.center.clone(), loss.num_batches.clone()
    value, _ = loss.eval()(feature, target)
    assert torch.equal(loss.center, center)
    assert torch.equal(loss.num_batches, count)
    assert float(value) == pytest.approx(loop(loss, feature, target, center.tolist())[0], rel=1e-4)


@pytest.mark.parametrize('bias', ['zero', 'mean', 'median'])
@pytest.mark.parametrize('magnitude', [0.0, 0.7])
def test_a_weight_of_zero_is_as_if_the_vector_were_not_there(bias, magnitude):
    """In the loss, the agreement, the gradient and the centre, over several batches."""
    torch.manual_seed(0)
    whole, part = (LSHDistillLoss(5, bits=16, std=0.4, bias=bias, momentum=0.3, magnitude=magnitude) for _ in range(2))
    for counts in ([1, 0, 1, 1, 0, 1], [0, 0, 0, 1, 0, 0], [1, 1, 1, 1, 1, 1]):
        weight = torch.tensor(counts)
        feature, target = torch.randn(2, 6, 5).unbind()
        target[weight == 0] += 100  # what does not count may be anything
        all_of_it, chosen = feature.clone().requires_grad_(), feature[weight > 0].clone().requires_grad_()
        value, agreement = whole(all_of_it, target, weight)
        expected, share = part(chosen, target[weight > 0])
        torch.testing.assert_close(value, expected)
        torch.testing.assert_close(agreement, share)
        torch.testing.assert_close(whole.center, part.center)
        assert whole.num_batches == part.num_batches
        value.backward()
        expected.backward()
        torch.testing.assert_close(all_of_it.grad[weight > 0], chosen.grad)
        assert all_of_it.grad[weight == 0].abs().sum() == 0


@pytest.mark.parametrize('bias', ['zero', 'mean'])
def test_real_weights_are_those_of_a_weighted_mean(bias):
    torch.manual_seed(0)
    loss = LSHDistillLoss(4, bits=6, std=0.4, bias=bias)
    feature, target = torch.randn(2, 3, 4)
    weight = [0.5, 2.0, 1.5]
    center = [0.0] * 6
    if bias == 'mean':
        center = [sum(w * v for w, v in zip(weight, values, strict=True)) / 4 for values in hash_values(loss, target)]
    each = [loop(loss, feature[i : i + 1], target[i : i + 1], center) for i in range(3)]
    value, agreement = loss(feature, target, torch.tensor(weight))
    assert float(value) == pytest.approx(sum(w * part[0] for w, part in zip(weight, each, strict=True)) / 4, rel=1e-4)
    assert float(agreement) == pytest.approx(sum(w * part[1] for w, part in zip(weight, each, strict=True)) / 4)


@pytest.mark.parametrize('bias', ['zero', 'mean', 'median'])
def test_weights_of_one_are_no_weights(bias):
    torch.manual_seed(0)
    feature, target = torch.randn(2, 7, 5)
    plain, weighted = LSHDistillLoss(5, bits=16, bias=bias), LSHDistillLoss(5, bits=16, bias=bias)
    for mine, expected in zip(weighted(feature, target, torch.ones(7)), plain(feature, target), strict=True):
        torch.testing.assert_close(mine, expected)
    torch.testing.assert_close(weighted.center, plain.center)


@pytest.mark.parametrize('bias', ['zero', 'mean', 'median'])
def test_weights_that_are_all_zero_give_a_zero_in_the_graph(bias):
    loss = LSHDistillLoss(5, bits=8, bias=bias, magnitude=1.0)
    loss(*torch.randn(2, 6, 5))
    center, count = loss.center.clone(), loss.num_batches.clone()
    feature = torch.randn(6, 5, requires_grad=True)
    value, agreement = loss(feature, torch.randn(6, 5), torch.zeros(6))
    assert value == 0
    assert agreement == 0
    value.backward()
    assert feature.grad.abs().max() == 0
    assert torch.equal(loss.center, center)
    assert torch.equal(loss.num_batches, count)


@pytest.mark.parametrize('bias', ['mean', 'median'])
def test_a_batch_that_is_not_finite_leaves_no_trace_in_the_center(bias):
    loss = LSHDistillLoss(in_channels=4, bits=8, bias=bias)
    good = torch.randn(16, 4)
    loss(good, good)
    center = loss.center.clone()
    loss(good, good / 0)
    assert torch.equal(loss.center, center)


def test_center_is_resumed():
    torch.manual_seed(0)
    batches = torch.randn(4, 2, 6, 5)
    whole, first, second = (LSHDistillLoss(5, bits=8) for _ in range(3))
    expected = [whole(*batch)[0] for batch in batches]
    for batch in batches[:2]:
        first(*batch)
    second.load_state_dict(first.state_dict())
    assert [second(*batch)[0] for batch in batches[2:]] == expected[2:]


def test_unknown_bias_is_refused():
    with pytest.raises(ValueError, match="'zero', 'mean' or 'median', but got 'max'"):
        LSHDistillLoss(5, bias='max')


@pytest.mark.parametrize('masked', [False, True])
def test_ranks_share_one_center_even_if_one_has_no_vectors(monkeypatch, masked):
    """Two threads play two ranks; one that skipped the exchange would leave the other waiting."""
    barrier, lock = threading.Barrier(2, timeout=600), threading.Lock()
    arrived: list[Tensor] = []

    def all_reduce(tensor: Tensor, op: str = 'sum') -> None:
        with lock:
            arrived.append(tensor.clone())
        barrier.wait()
        tensor.copy_(torch.stack(arrived).sum(dim=0))
        barrier.wait()
        with lock:
            arrived.clear()
        barrier.wait()

    monkeypatch.setattr('dskd_mm.distributed.is_distributed', lambda: True)
    monkeypatch.setattr('dskd_mm.distributed.all_reduce', all_reduce)
    vectors = torch.randn(4, 3)

    def run(rank: int) -> Tensor:
        loss = LSHDistillLoss(3, bits=4, std=1.0)
        batch = vectors[2 * rank : 2 * rank + 2]
        loss(batch, batch)
        if masked:  # rank 0 has none that counts in the second
            loss(vectors[:2], vectors[:2], torch.full((2,), float(rank)))
        else:
            loss(vectors[: 2 * rank], vectors[: 2 * rank])
        return loss.center

    with ThreadPoolExecutor(2) as pool:
        centers = list(pool.map(run, range(2)))
    assert torch.equal(centers[0], centers[1])
    loss = LSHDistillLoss(3, bits=4, std=1.0)
    means = [[statistics.fmean(values) for values in hash_values(loss, part)] for part in (vectors, vectors[:2])]
    torch.testing.assert_close(centers[0], torch.tensor(means).mean(dim=0))


# ------------------------------------------------------------------------------------------------ soft bits


def soft_loop(loss: LSHDistillLoss, feature: Tensor, target: Tensor, center: Tensor, weight: list[float]) -> float:
    """Divergence of bits' probabilities, vector by vector and bit by bit."""
    total = 0.0
    for ours, theirs, share in zip((feature - center).tolist(), (target - center).tolist(), weight, strict=True):
        own, wanted = (math.sqrt(sum(x * x for x in v)) for v in (ours, theirs))
        for row in loss.projection.tolist():
            a = float(loss.std) * sum(w * f for w, f in zip(row, ours, strict=True)) / own
            b = float(loss.std) * sum(w * f for w, f in zip(row, theirs, strict=True)) / wanted
            p, h = 1 / (1 + math.exp(-a)), 1 / (1 + math.exp(-b))
            total += share * (h * math.log(h / p) + (1 - h) * math.log((1 - h) / (1 - p))) / len(loss.projection)
    return total / sum(weight)


@pytest.mark.parametrize('std', [None, 0.3, 2.0])
@pytest.mark.parametrize('bias', ['zero', 'mean', 'median'])
def test_soft_bits_are_the_plain_loop(bias, std):
    torch.manual_seed(0)
    loss = LSHDistillLoss(6, bits=9, bias=bias, std=std, soft=True)
    feature, target = torch.randn(2, 7, 6) + 1
    weight = [1.0, 0.0, 2.0, 1.0, 1.0, 0.5, 1.0]
    value, _ = loss(feature, target, torch.tensor(weight))
    rows = [(row, w) for row, w in zip(target, weight, strict=True) if w]
    centers = dict(
        zero=torch.zeros(6),
        mean=sum(w * row for row, w in rows) / sum(weight),
        median=torch.stack([row for row, _ in rows]).median(dim=0).values,
    )
    torch.testing.assert_close(loss.center, centers[bias])
    assert float(value) == pytest.approx(soft_loop(loss, feature, target, centers[bias], weight), rel=1e-4)


def test_soft_bits_have_no_gradient_at_the_target_and_hard_bits_have():
    torch.manual_seed(0)
    target = torch.randn(8, 5)

    def gradient(feature: Tensor, soft: bool) -> Tensor:
        leaf = feature.clone().requires_grad_()
        LSHDistillLoss(5, bits=64, soft=soft)(leaf, target)[0].backward()
        return leaf.grad

    assert gradient(target, soft=True).abs().max() == 0
    assert gradient(target, soft=False).abs().max() > 1e-3
    # Elsewhere it is the gradient that finite differences find, and never along the centred vector.
    feature = target + 0.3 * torch.randn(8, 5)
    found, center = gradient(feature, soft=True), target.mean(dim=0)
    loss = LSHDistillLoss(5, bits=64, soft=True)
    for place in ((0, 0), (3, 2), (7, 4)):
        step = torch.zeros(8, 5)
        step[place] = 1e-2
        slope = (loss(feature + step, target)[0] - loss(feature - step, target)[0]) / 2e-2
        assert float(slope) == pytest.approx(float(found[place]), rel=0.02, abs=1e-5)
    along = ((feature - center) * found).sum(dim=1)
    assert along.abs().max() < 1e-5 < found.abs().max()


def test_vectors_without_a_direction_have_a_finite_gradient():
    loss = LSHDistillLoss(5, soft=True, bias='zero')
    feature = torch.cat([torch.zeros(1, 5), torch.randn(3, 5)]).requires_grad_()
    value, _ = loss(feature, torch.randn(4, 5))
    value.backward()
    assert torch.isfinite(value) and feature.grad.abs().max() < 100


@pytest.mark.parametrize(('shape', 'sigmoid', 'unseen'), [((5, 12), False, 8), ((5, 12), True, 7), ((2, 12, 2, 2), True, 4)])
@pytest.mark.parametrize('soft', [True, False])
def test_only_what_the_classifier_cannot_see_is_hashed(shape, sigmoid, unseen, soft):
    torch.manual_seed(0)
    weight = torch.randn(shape)
    loss = LSHDistillLoss(12, bits=256, std=1.0, soft=soft, bias='zero', project='null')
    loss.set_classifier(weight, sigmoid=sigmoid)
    z, moved = torch.randn(6, 12, requires_grad=True), torch.randn(6, 12)
    # What it sees: the rows of each place of its kernel; of exclusive classes their differences.
    rows = weight.reshape(shape[0], 12, -1).permute(2, 0, 1).reshape(-1, 12)
    rows = rows if sigmoid else rows[1:] - rows[:1]
    coordinates = torch.randn(6, len(rows))
    loss(z, moved + coordinates @ rows)[0].backward()
    torch.testing.assert_close(z.grad @ rows.T, torch.zeros(6, len(rows)), rtol=0, atol=1e-5)
    assert z.grad.norm() > 1e-3
    assert int(torch.linalg.matrix_rank(loss.null)) == unseen
    first, second = loss(z, moved)[0], loss(z, moved + coordinates @ rows)[0]
    torch.testing.assert_close(first, second, rtol=1e-4, atol=1e-5)
    # And nothing else is left out: along an unseen direction it changes.
    assert not torch.allclose(loss(z, moved + torch.randn(6, 12) @ loss.null)[0], first, rtol=1e-3)


def test_a_classifier_that_sees_all_leaves_nothing_to_hash():
    loss = LSHDistillLoss(4, project='null')
    with pytest.raises(ValueError, match='sees all 4 of its feature: leave project out'):
        loss.set_classifier(torch.randn(6, 4))
    with pytest.raises(ValueError, match="project of LSHDistillLoss must be 'null' or None, but got 'row'"):
        LSHDistillLoss(4, project='row')
