"""Box distillation against torchvision, scipy and plain loops."""

import pytest
import torch
from scipy.stats import entropy
from torchvision.ops import box_iou

from dskd_mm.guidance import Target
from dskd_mm.losses import BoxLoss
from dskd_mm.losses.box import side_iou

BATCH, CLASSES, PLACES = 2, 3, 7


@pytest.fixture
def label() -> Target:
    """Three foreground predictions, of which one is ignored."""
    probability, weight = torch.zeros(BATCH, CLASSES, PLACES), torch.ones(BATCH, 1, PLACES)
    probability[0, 1, 2] = probability[1, 0, 0] = 1
    probability[1, 2, 5] = 0.3  # a quality score
    weight[1, 0, 0] = 0
    return Target(probability, weight, count=torch.tensor(4.0))


COUNTED = [(0, 2), (1, 5)]


def sides(seed: int) -> torch.Tensor:
    return torch.rand(BATCH, 4, PLACES, generator=torch.Generator().manual_seed(seed)) * 9 + 1


def corners(box: torch.Tensor) -> torch.Tensor:
    """Around the point (20, 20)."""
    left, top, right, bottom = box
    return torch.stack([20 - left, 20 - top, 20 + right, 20 + bottom])[None]


def test_distances_are_compared_by_their_overlap(label: Target) -> None:
    student, teacher = sides(0), sides(1)
    expected = sum(1 - box_iou(corners(student[b, :, i]), corners(teacher[b, :, i])).item() for b, i in COUNTED) / 4
    assert BoxLoss(loss_weight=2)(student, teacher, label, 'distance').item() == pytest.approx(2 * expected, rel=1e-5)
    # Whatever the unit.
    assert torch.allclose(side_iou(student, teacher), side_iou(8 * student, 8 * teacher))
    assert side_iou(-student, teacher).abs().max() == 0


def test_offsets_are_compared_by_their_distance(label: Target) -> None:
    student, teacher = sides(0), sides(1)
    expected = sum(sum(abs(float(student[b, k, i] - teacher[b, k, i])) for k in range(4)) for b, i in COUNTED) / 4
    assert BoxLoss()(student, teacher, label, 'delta').item() == pytest.approx(expected, rel=1e-5)


def test_distributions_are_compared_by_their_divergence(label: Target) -> None:
    bins, temperature = 5, 3.0
    student, teacher = (
        torch.randn(BATCH, 4 * bins, PLACES, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1)
    )
    expected = 0.0
    for b, i in COUNTED:
        for side in range(4):
            ours, theirs = (x[b, side * bins : (side + 1) * bins, i] for x in (student, teacher))
            expected += entropy((theirs / temperature).softmax(0), (ours / temperature).softmax(0)) / 4
    loss = BoxLoss(temperature)(student, teacher, label, 'distribution')
    assert loss.item() == pytest.approx(expected * temperature**2 / 4, rel=1e-4)


@pytest.mark.parametrize(('kind', 'length'), [('delta', 4), ('distance', 4), ('distribution', 20)])
def test_without_foreground_it_is_a_zero_in_the_graph(kind: str, length: int) -> None:
    student = torch.randn(BATCH, length, PLACES, requires_grad=True)
    loss = BoxLoss()(student, torch.randn(BATCH, length, PLACES), Target(torch.zeros(BATCH, CLASSES, PLACES)), kind)
    loss.backward()
    assert loss.item() == 0 and student.grad is not None and not student.grad.any()


@pytest.mark.parametrize(('kind', 'ours', 'theirs'), [('delta', 4, 8), ('distance', 8, 8), ('distribution', 6, 6)])
def test_other_shapes_are_refused(kind: str, ours: int, theirs: int, label: Target) -> None:
    with pytest.raises(ValueError, match=rf'\(2, {ours}, 7\).*box=0'):
        BoxLoss()(torch.zeros(2, ours, 7), torch.zeros(2, theirs, 7), label, kind)


@pytest.mark.parametrize('arguments', [dict(temperature=0), dict(loss_weight=-1)])
def test_bad_arguments_are_refused(arguments: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        BoxLoss(**arguments)
