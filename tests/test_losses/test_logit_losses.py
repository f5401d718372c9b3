"""The losses on logits against torch, scipy and plain loops."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr
from torch import Tensor
from torch.nn import functional as F

from dskd_mm.losses import DISTLoss, DKDLoss, KDLoss, LogitLoss
from dskd_mm.losses.dist import pearson
from dskd_mm.losses.dkd import decoupled_divergences
from dskd_mm.structures import ModelOutputs, TapSpec, Target

IMAGES, CLASSES, PREDICTIONS = 3, 4, 5
SHAPES = [(IMAGES, CLASSES), (IMAGES, CLASSES, PREDICTIONS)]
LOSSES = [KDLoss(), DKDLoss(), DISTLoss()]


def draw(shape: tuple[int, ...], seed: int = 0, scale: float = 2.0) -> tuple[Tensor, Tensor]:
    """Logits of a student, which ask for a gradient, and of a teacher."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (scale * torch.randn(shape, generator=generator) for _ in range(2))
    return student.requires_grad_(), teacher


def labels(shape: tuple[int, ...], weight: Tensor | None = None, seed: int = 1) -> Target:
    """One-hot annotations of random classes."""
    generator = torch.Generator().manual_seed(seed)
    classes = torch.randint(shape[1], (shape[0], *shape[2:]), generator=generator)
    return Target(torch.eye(shape[1])[classes].movedim(-1, 1).contiguous(), weight)


def some_weight(shape: tuple[int, ...]) -> Tensor:
    """Weights (B, 1, ...), every other one of them 0."""
    weight = torch.ones(shape[0], 1, *shape[2:])
    weight.view(-1)[::2] = 0
    return weight


def rows(tensor: Tensor) -> Tensor:
    """(R, K), one row for each prediction."""
    return tensor if tensor.ndim == 2 else torch.cat(list(tensor.transpose(1, 2)))


def softmax(row: list[float], temperature: float) -> list[float]:
    powers = [math.exp(value / temperature) for value in row]
    return [power / sum(powers) for power in powers]


# ---------------------------------------------------------------------------------------------- what all share


@pytest.mark.parametrize('shape', SHAPES, ids=str)
@pytest.mark.parametrize('loss', LOSSES, ids=lambda loss: type(loss).__name__)
def test_a_perfect_student_loses_nothing_and_any_other_learns(loss: LogitLoss, shape: tuple[int, ...]) -> None:
    student, teacher = draw(shape)
    assert loss(teacher, teacher, labels(shape)).item() == pytest.approx(0, abs=1e-4)
    value = loss(student, teacher, labels(shape))
    value.backward()
    assert value > 0.01 and student.grad is not None and bool(student.grad.isfinite().all()) and bool(student.grad.any())


@pytest.mark.parametrize('shape', [*SHAPES, (0, CLASSES), (0, CLASSES, PREDICTIONS)], ids=str)
@pytest.mark.parametrize('loss', LOSSES, ids=lambda loss: type(loss).__name__)
def test_a_zero_in_the_graph_where_nothing_counts(loss: LogitLoss, shape: tuple[int, ...]) -> None:
    student, teacher = draw(shape)
    value = loss(student, teacher, Target(torch.zeros(shape), torch.zeros(shape[0], 1, *shape[2:])))
    value.backward()
    assert value == 0 and student.grad is not None and not student.grad.any()


@pytest.mark.parametrize('shape', SHAPES, ids=str)
@pytest.mark.parametrize('loss', LOSSES, ids=lambda loss: type(loss).__name__)
def test_predictions_of_weight_0_do_not_count(loss: LogitLoss, shape: tuple[int, ...]) -> None:
    student, teacher = draw(shape)
    weight, label = some_weight(shape), labels(shape)
    value = loss(student, teacher, Target(label.probability, weight))
    value.backward()
    ignored = (weight == 0).expand(shape)
    assert student.grad is not None and not student.grad[ignored].any() and student.grad[~ignored].any()
    kept = rows(weight)[:, 0] > 0
    chosen = [rows(tensor)[kept] for tensor in (student, teacher, label.probability)]
    expected = loss(chosen[0], chosen[1], Target(chosen[2]))
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize('kind', [KDLoss, DKDLoss, DISTLoss])
def test_the_loss_weight_multiplies_and_bfloat16_is_computed_in_float32(kind: type[LogitLoss]) -> None:
    student, teacher = (logits.detach().bfloat16() for logits in draw(SHAPES[1]))
    label = labels(SHAPES[1])
    plain = kind()(student.float(), teacher.float(), label)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        value = kind(loss_weight=2.5)(student, teacher, label)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(2.5 * plain.item(), rel=1e-5)


@pytest.mark.parametrize(
    ('kind', 'options', 'words'),
    [
        (KDLoss, dict(temperature=0), ['temperature of KDLoss', '0']),
        (DKDLoss, dict(temperature=-1), ['temperature of DKDLoss', '-1']),
        (DISTLoss, dict(temperature=0.0), ['temperature of DISTLoss', '0.0']),
        (KDLoss, dict(loss_weight=-0.5), ['loss_weight of KDLoss', '-0.5']),
        (DKDLoss, dict(beta=-1), ['alpha and beta of DKDLoss', '-1']),
        (DISTLoss, dict(gamma=-2), ['beta and gamma of DISTLoss', '-2']),
    ],
)
def test_bad_arguments(kind: type[LogitLoss], options: dict, words: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        kind(**options)
    assert [word for word in words if word not in str(error.value)] == []


# --------------------------------------------------------------------------------------------------------- KD


@pytest.mark.parametrize('temperature', [1.0, 4.0])
@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_kd_of_exclusive_classes_is_that_of_torch(shape: tuple[int, ...], temperature: float) -> None:
    student, teacher = draw(shape)
    value = KDLoss(temperature)(student, teacher, labels(shape))
    ours, theirs = (F.log_softmax(rows(logits) / temperature, dim=1) for logits in (student, teacher))
    expected = F.kl_div(ours, theirs, reduction='batchmean', log_target=True) * temperature**2
    assert value.item() == pytest.approx(expected.item(), rel=1e-4)


@pytest.mark.parametrize('focus', [0.0, 1.5])
@pytest.mark.parametrize('count', [None, 7.0])
def test_kd_of_independent_classes_is_the_plain_loop(focus: float, count: float | None) -> None:
    shape, temperature = SHAPES[1], 2.0
    student, teacher = draw(shape)
    weight = some_weight(shape)
    label = Target(labels(shape).probability, weight, None if count is None else torch.tensor(count), focus)
    total = 0.0
    for ours, theirs, w in zip(rows(student).tolist(), rows(teacher).tolist(), rows(weight)[:, 0].tolist(), strict=True):
        for a, b in zip(ours, theirs, strict=True):
            p, q = (1 / (1 + math.exp(-value / temperature)) for value in (a, b))
            cross, entropy = (-q * math.log(x) - (1 - q) * math.log(1 - x) for x in (p, q))
            total += w * (cross * abs(q - p) ** focus if focus else cross - entropy)
    total *= temperature**2 / (float(weight.sum()) if count is None else count)
    assert KDLoss(temperature)(student, teacher, label, sigmoid=True).item() == pytest.approx(total, rel=1e-4)


# -------------------------------------------------------------------------------------------------------- DKD


@settings(derandomize=True, deadline=None, max_examples=40)
@given(
    classes=st.integers(2, 6),
    scale=st.sampled_from([0.1, 2.0, 30.0]),
    temperature=st.sampled_from([1.0, 4.0]),
    seed=st.integers(0, 2**16),
)
def test_the_two_parts_of_dkd_sum_up_to_kd(classes: int, scale: float, temperature: float, seed: int) -> None:
    student, teacher = (logits.double() for logits in draw((3, classes, 2), seed, scale))
    true = labels((3, classes, 2), seed=seed).probability.argmax(dim=1, keepdim=True)
    target, others = decoupled_divergences(student / temperature, teacher / temperature, true)
    miss = 1 - (teacher / temperature).softmax(dim=1).gather(1, true)
    ours, theirs = ((logits / temperature).log_softmax(dim=1) for logits in (student, teacher))
    expected = F.kl_div(ours, theirs, reduction='none', log_target=True).sum(dim=1, keepdim=True)
    torch.testing.assert_close(target + miss * others, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_dkd_is_the_plain_loop(shape: tuple[int, ...]) -> None:
    alpha, beta, temperature = 1.5, 6.0, 3.0
    student, teacher = draw(shape)
    label = labels(shape)
    total, count = 0.0, 0
    for ours, theirs, truth in zip(
        rows(student).tolist(), rows(teacher).tolist(), rows(label.probability).tolist(), strict=True
    ):
        true = truth.index(1.0)
        p, q = softmax(ours, temperature), softmax(theirs, temperature)
        total += alpha * q[true] * math.log(q[true] / p[true])
        total += alpha * (1 - q[true]) * math.log((1 - q[true]) / (1 - p[true]))
        others = [i for i in range(len(p)) if i != true]
        p, q = softmax([ours[i] for i in others], temperature), softmax([theirs[i] for i in others], temperature)
        total += beta * sum(b * math.log(b / a) for a, b in zip(p, q, strict=True))
        count += 1
    value = DKDLoss(alpha, beta, temperature)(student, teacher, label)
    assert value.item() == pytest.approx(temperature**2 * total / count, rel=1e-4)


def test_dkd_takes_the_main_class_of_mixed_labels() -> None:
    student, teacher = draw((2, CLASSES))
    mixed = Target(torch.tensor([[0.1, 0.7, 0.2, 0.0], [0.6, 0.0, 0.0, 0.4]]))
    main = Target(torch.eye(CLASSES)[[1, 0]])
    loss = DKDLoss()
    assert torch.equal(loss(student, teacher, mixed), loss(student, teacher, main))


def test_dkd_of_confident_logits_is_finite() -> None:
    student = torch.tensor([[90.0, -90.0, 0.0], [-200.0, 300.0, 10.0]], requires_grad=True)
    teacher = torch.tensor([[80.0, -70.0, -60.0], [250.0, -100.0, 0.0]])
    value = DKDLoss(temperature=1.0)(student, teacher, Target(torch.eye(3)[[0, 0]]))
    value.backward()
    assert bool(value.isfinite()) and student.grad is not None and bool(student.grad.isfinite().all())


@pytest.mark.parametrize(
    ('loss', 'classes', 'sigmoid', 'words'),
    [
        (DKDLoss(), 4, True, ['4 independent (sigmoid)', 'KDLoss']),
        (DKDLoss(), 1, False, ['1 exclusive', 'KDLoss']),
        (DISTLoss(), 1, True, ['at least two', 'but got 1', 'KDLoss']),
    ],
)
def test_classifiers_that_a_loss_is_not_defined_for(loss: LogitLoss, classes: int, sigmoid: bool, words: list[str]) -> None:
    logits = torch.randn(2, classes)
    for attempt in (
        lambda: loss.check(classes, sigmoid),
        lambda: loss(logits, logits, Target(torch.ones_like(logits)), sigmoid),
    ):
        with pytest.raises(ValueError) as error:
            attempt()
        assert [word for word in words if word not in str(error.value)] == []


# ------------------------------------------------------------------------------------------------------- DIST


@pytest.mark.parametrize('weighted', [False, True])
@pytest.mark.parametrize('sigmoid', [False, True])
@pytest.mark.parametrize('shape', SHAPES, ids=str)
def test_dist_is_that_of_scipy(shape: tuple[int, ...], sigmoid: bool, weighted: bool) -> None:
    beta, gamma, temperature = 1.5, 0.75, 2.0
    shape = (5, *shape[1:])
    student, teacher = draw(shape)
    weight = some_weight(shape) if weighted else None
    value = DISTLoss(beta, gamma, temperature)(student, teacher, Target(labels(shape).probability, weight), sigmoid)
    kept = slice(None) if weight is None else rows(weight)[:, 0] > 0
    y, z = (
        (torch.sigmoid(logits / temperature) if sigmoid else torch.softmax(logits / temperature, dim=1))[kept].numpy()
        for logits in (rows(student.detach()), rows(teacher))
    )
    between = sum(1 - pearsonr(a, b).statistic for a, b in zip(y, z, strict=True)) / len(y)
    within = sum(1 - pearsonr(a, b).statistic for a, b in zip(y.T, z.T, strict=True)) / CLASSES
    assert value.item() == pytest.approx(temperature**2 * (beta * between + gamma * within), rel=1e-4)


def test_pearson_with_weights_is_that_of_repeated_observations() -> None:
    x, y = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    times = torch.tensor([1, 3, 0, 2])
    expected = [pearsonr(a.repeat_interleave(times), b.repeat_interleave(times)).statistic for a, b in zip(x, y, strict=True)]
    torch.testing.assert_close(pearson(x, y, times.float()), torch.tensor(expected, dtype=torch.float32))


def test_equal_predictions_give_dist_no_gradient() -> None:
    """A detector's first predictions may be equal: rounding errors must not be blown up."""
    student = torch.full((6, 7), 0.3, requires_grad=True)
    value = DISTLoss()(student, torch.randn(6, 7), Target(torch.eye(7)[:6]))
    value.backward()
    assert value.item() == pytest.approx(2)
    assert student.grad is not None and not student.grad.any()


def test_confident_predictions_give_dist_a_finite_gradient() -> None:
    teacher = 40 * torch.eye(5)
    student = (teacher + torch.randn(5, 5, generator=torch.Generator().manual_seed(0))).requires_grad_()
    value = DISTLoss()(student, teacher, Target(torch.eye(5)))
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-5)
    assert student.grad is not None and bool(student.grad.isfinite().all())


def test_dist_of_one_row_has_no_relations_within_a_class() -> None:
    student, teacher = draw((1, CLASSES))
    value = DISTLoss(beta=0.0, gamma=3.0)(student, teacher, labels((1, CLASSES)))
    value.backward()
    assert value == 3 and student.grad is not None and not student.grad.any()


@pytest.mark.parametrize('shape', SHAPES, ids=str)
@pytest.mark.parametrize('temperature', [2.0, 4.0])
def test_standardised_logits_are_those_of_the_authors(shape: tuple[int, ...], temperature: float) -> None:
    """As in the code of Sun et al. (CVPR 2024): minus the mean, over torch's deviation, then the usual divergence."""
    student, teacher = draw(shape)

    def normalize(logit: Tensor) -> Tensor:
        return (logit - logit.mean(dim=-1, keepdims=True)) / (1e-7 + logit.std(dim=-1, keepdims=True))

    ours, theirs = (normalize(rows(x)) / temperature for x in (student, teacher))
    expected = F.kl_div(F.log_softmax(ours, dim=1), F.softmax(theirs, dim=1), reduction='none').sum(1).mean() * temperature**2
    loss = KDLoss(temperature, loss_weight=9.0, standardize=True)
    found = loss(student, teacher, labels(shape))
    torch.testing.assert_close(found, 9 * expected, rtol=1e-4, atol=1e-5)
    # Neither the range nor the mean of either side counts.
    torch.testing.assert_close(loss(3 * student + 5, 0.1 * teacher - 2, labels(shape)), found, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(('classes', 'sigmoid'), [(2, False), (5, True)])
def test_logits_without_relations_are_not_standardised(classes: int, sigmoid: bool) -> None:
    loss = KDLoss(standardize=True)
    with pytest.raises(ValueError, match=r'at least three exclusive classes.*set standardize=False'):
        loss.check(classes, sigmoid)
    KDLoss().check(classes, sigmoid)
    loss.check(3, False)


@pytest.mark.parametrize('weighted', [True, False])
def test_maps_of_logits_are_compared_enlarged(weighted: bool) -> None:
    """As a segmenter's own loss sees them; ignored pixels weigh nothing."""
    student, teacher = draw((2, CLASSES, 3, 2))
    weight = some_weight((2, CLASSES, 6)) if weighted else None
    target = labels((2, CLASSES, 6), weight)
    loss = KDLoss(2.0, loss_weight=3.0, upsample=4)
    found = loss.compare_outputs(ModelOutputs([], [student]), ModelOutputs([], [teacher]), target)
    ours, theirs = (F.interpolate(x, size=(12, 8), mode='bilinear', align_corners=False) for x in (student, teacher))
    each = F.kl_div((ours / 2).log_softmax(1), (theirs / 2).softmax(1), reduction='none').sum(1)
    counts = torch.ones(2, 3, 2) if weight is None else weight.reshape(2, 3, 2)
    counts = counts.repeat_interleave(4, dim=1).repeat_interleave(4, dim=2)
    torch.testing.assert_close(found, 3 * 4 * (each * counts).sum() / counts.sum(), rtol=1e-4, atol=1e-5)
    # Of several processes the target says by how many locations of the joined batch losses are divided.
    joined = replace(target, avg_factor=torch.tensor(20.0))
    found = loss.compare_outputs(ModelOutputs([], [student]), ModelOutputs([], [teacher]), joined)
    torch.testing.assert_close(found, 3 * 4 * (each * counts).sum() / (20 * 4**2), rtol=1e-4, atol=1e-5)


def test_only_maps_of_a_segmenter_are_enlarged() -> None:
    spec = TapSpec('head', ('head.fc',), False, CLASSES, ('neck',), 'output', 8, is_pooled=True)
    with pytest.raises(ValueError, match='kd enlarges the maps of a segmenter, but this site has other logits'):
        KDLoss(upsample=2).bind(spec, spec, 'kd')
    KDLoss(upsample=2).bind(replace(spec, is_dense=True, is_pooled=False), spec, 'kd')
    with pytest.raises(ValueError, match='upsample of KDLoss must be at least 1, but got 0'):
        KDLoss(upsample=0)
