"""Box distillation against scipy and plain loops."""

import pytest
import torch
from scipy.stats import entropy

from dskd_mm.losses import BoxLoss
from dskd_mm.structures import Target

BATCH, CLASSES, PLACES = 2, 3, 7


@pytest.fixture
def label() -> Target:
    """Three foreground predictions, of which one is ignored."""
    probability, weight = torch.zeros(BATCH, CLASSES, PLACES), torch.ones(BATCH, 1, PLACES)
    probability[0, 1, 2] = probability[1, 0, 0] = 1
    probability[1, 2, 5] = 0.3  # a quality score
    weight[1, 0, 0] = 0
    return Target(probability, weight, avg_factor=torch.tensor(4.0))


COUNTED = [(0, 2), (1, 5)]


def sides(seed: int) -> torch.Tensor:
    return torch.rand(BATCH, 4, PLACES, generator=torch.Generator().manual_seed(seed)) * 9 + 1


def test_distances_are_compared_in_units_of_the_box(label: Target) -> None:
    student, teacher = sides(0), sides(1)
    expected = 0.0
    for b, i in COUNTED:
        left, top, right, bottom = teacher[b, :, i].tolist()
        size = ((left + right) + (top + bottom)) / 2
        expected += sum(abs(float(student[b, k, i] - teacher[b, k, i])) for k in range(4)) / size / 4
    assert BoxLoss(loss_weight=2)(student, teacher, label, 'distance').item() == pytest.approx(2 * expected, rel=1e-5)
    # Whatever the unit.
    once, eightfold = (BoxLoss()(k * student, k * teacher, label, 'distance') for k in (1, 8))
    torch.testing.assert_close(once, eightfold)


@pytest.mark.parametrize('size', [0.0, 1e-6, 0.5])
def test_distances_cannot_run_away_where_the_teachers_box_vanishes(label: Target, size: float) -> None:
    """A teacher that is not trained yet: the loss of a box is at most 22, and its gradient 10 over the student's size."""
    student = (400 * sides(0)).requires_grad_()
    loss = BoxLoss()(student, torch.full_like(student, size), label, 'distance')
    loss.backward()
    assert 20 * len(COUNTED) / 4 - 0.1 < loss.item() <= 22 * len(COUNTED) / 4
    for b, i in COUNTED:
        own = student[b, :, i].detach().sum() / 2
        torch.testing.assert_close(student.grad[b, :, i], torch.full((4,), 10 / float(own) / 4))


def test_boxes_that_have_vanished_in_both_models_are_equal(label: Target) -> None:
    student = torch.zeros(BATCH, 4, PLACES, requires_grad=True)
    loss = BoxLoss()(student, torch.zeros_like(student), label, 'distance')
    loss.backward()
    assert loss.item() == 0 and student.grad.isfinite().all()


def test_offsets_are_compared_by_their_distance(label: Target) -> None:
    student, teacher = sides(0), sides(1)
    expected = sum(sum(abs(float(student[b, k, i] - teacher[b, k, i])) for k in range(4)) for b, i in COUNTED) / 4
    assert BoxLoss()(student, teacher, label, 'delta').item() == pytest.approx(expected, rel=1e-5)


def test_offsets_of_the_annotated_class_alone_are_compared() -> None:
    student, teacher = (torch.randn(5, 4 * CLASSES, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    classes = [2, CLASSES, 0, 1, CLASSES]  # the last one is the background
    label = Target(torch.eye(CLASSES + 1)[classes], torch.tensor([[1.0], [1], [0], [1], [1]]), background=True)
    expected = sum(float((student[i] - teacher[i]).abs()[4 * classes[i] : 4 * classes[i] + 4].sum()) for i in (0, 3)) / 4
    assert BoxLoss()(student, teacher, label, 'class_delta').item() == pytest.approx(expected, rel=1e-5)


def test_background_is_no_foreground(label: Target) -> None:
    with_background = torch.cat([label.probability, 1 - label.probability.sum(dim=1, keepdim=True)], dim=1)
    same = Target(with_background, label.weight, label.avg_factor, background=True)
    assert BoxLoss()(sides(0), sides(1), same, 'delta') == BoxLoss()(sides(0), sides(1), label, 'delta') > 0


def test_distributions_are_compared_by_their_divergence(label: Target) -> None:
    bins, temperature = 5, 3.0
    student, teacher = (torch.randn(BATCH, 4 * bins, PLACES, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    expected = 0.0
    for b, i in COUNTED:
        for side in range(4):
            ours, theirs = (x[b, side * bins : (side + 1) * bins, i] for x in (student, teacher))
            expected += entropy((theirs / temperature).softmax(0), (ours / temperature).softmax(0)) / 4 / bins
    loss = BoxLoss(temperature)(student, teacher, label, 'distribution')
    assert loss.item() == pytest.approx(expected * temperature**2 / 4, rel=1e-4)


@pytest.mark.parametrize(('kind', 'length'), [('delta', 4), ('distance', 4), ('distribution', 20)])
def test_without_foreground_it_is_a_zero_in_the_graph(kind: str, length: int) -> None:
    student = torch.randn(BATCH, length, PLACES, requires_grad=True)
    loss = BoxLoss()(student, torch.randn(BATCH, length, PLACES), Target(torch.zeros(BATCH, CLASSES, PLACES)), kind)
    loss.backward()
    assert loss.item() == 0 and student.grad is not None and not student.grad.any()


@pytest.mark.parametrize(
    ('kind', 'ours', 'theirs'), [('delta', 4, 8), ('distance', 8, 8), ('distribution', 6, 6), ('class_delta', 4, 4)]
)
def test_other_shapes_are_refused(kind: str, ours: int, theirs: int, label: Target) -> None:
    with pytest.raises(ValueError, match=rf'\(2, {ours}, 7\).*box=0'):
        BoxLoss()(torch.zeros(2, ours, 7), torch.zeros(2, theirs, 7), label, kind)


@pytest.mark.parametrize('arguments', [dict(temperature=0), dict(loss_weight=-1)])
def test_bad_arguments_are_refused(arguments: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        BoxLoss(**arguments)
