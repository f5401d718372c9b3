"""Curves and pictures of predictions: what counts as right, and where detectors are compared."""

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from mmengine.structures import InstanceData

from examples.digits import predictions
from examples.digits.curves import accuracy_curves


def test_curve_and_band():
    runs = [{1: 10.0, 2: 50.0, 3: 60.0, 4: 70.0}, {1: 20.0, 2: 60.0, 3: 80.0, 4: 90.0, 5: 95.0}]
    figure = accuracy_curves({'plain': runs, 'DSKD': [{2: 80.0, 4: 95.0}]}, reference=('teacher', 97.0))
    axes = figure.axes[0]
    plain, single, teacher = axes.lines
    assert plain.get_ydata().tolist() == [15.0, 55.0, 70.0, 80.0], 'the mean, over the epochs that all runs have'
    assert plain.get_xdata().tolist() == [1, 2, 3, 4] and single.get_xdata().tolist() == [2, 4]
    band = axes.collections[0].get_paths()[0].vertices[:, 1]
    deviation = np.std([70, 90], ddof=1)
    assert band.max() == pytest.approx(80 + deviation) and single.get_label() == 'DSKD (mean of 1 run)'
    assert teacher.get_ydata()[0] == 97.0
    low, high = axes.get_ylim()
    assert 15 < low < 50 and 97 < high < 100, 'the start is out of the picture, everything later in it'
    assert axes.get_xlabel() and '%' in axes.get_ylabel()


def test_one_epoch(tmp_path):
    accuracy_curves({'plain': [{1: 10.0}]}).savefig(tmp_path / 'figure.png')
    assert (tmp_path / 'figure.png').stat().st_size


def instances(*rows: tuple[float, ...], scores: tuple[float, ...] | None = None) -> InstanceData:
    """From rows of left, top, right, bottom, label."""
    array = torch.tensor(rows, dtype=torch.float).reshape(-1, 5)
    found = InstanceData(bboxes=array[:, :4], labels=array[:, 4].long())
    if scores is not None:
        found.scores = torch.tensor(scores)
    return found


@pytest.mark.parametrize(
    'found, scores, right, hit',
    [
        ([(0, 0, 10, 10, 3)], [0.9], [True], [True, False]),
        ([(0, 0, 10, 10, 4)], [0.9], [False], [False, False]),  # another class
        ([(0, 0, 10, 10, 3), (0, 0, 10, 9, 3)], [0.5, 0.9], [False, True], [True, False]),  # one too many: the weaker
        ([(0, 0, 10, 4, 3)], [0.9], [False], [False, False]),  # not even half of it
        ([(20, 0, 30, 10, 3), (0, 0, 10, 10, 3)], [0.4, 0.9], [True, True], [True, True]),
        ([], [], [], [False, False]),
    ],
)
def test_boxes_are_matched_once_and_by_class(found, scores, right, hit):
    pytest.importorskip('mmdet')
    truth = instances((0, 0, 10, 10, 3), (20, 0, 30, 10, 3))
    own = instances(*found, scores=tuple(scores))
    assert predictions.judge(own, truth)[1].tolist() == right
    assert predictions.hit(truth, own[torch.tensor(right, dtype=torch.bool)]).tolist() == hit
    assert not predictions.judge(own, instances())[1].any()


def test_the_operating_point_is_the_least_confidence_of_the_same_precision():
    right = torch.tensor([True, False, True, True, True, False, False])
    scores = torch.tensor([0.9, 0.3, 0.8, 0.6, 0.5, 0.2, 0.1])
    # 4 of 4 from 0.5 on, 4 of 5 from 0.3 on, 4 of 6 from 0.2 on; 8 objects.
    assert predictions.operating_point(scores, right, 8) == pytest.approx((0.3, 0.8, 0.5))
    # So precise it never is: the best there is.
    weak = torch.tensor([False, True, True, False, False, False, False])
    assert predictions.operating_point(torch.arange(7, 0, -1.0), weak, 4) == pytest.approx((5.0, 2 / 3, 0.5))
    assert predictions.operating_point(torch.tensor([]), torch.tensor([], dtype=torch.bool), 4) == (1, 0, 0)


def test_the_grid_has_a_row_for_each_model(tmp_path):
    picture = np.zeros((8, 6, 3), np.uint8)
    figure = predictions.grid({'plain': [picture] * 3, 'DSKD': [picture + 255] * 3}, {'right': (0, 255, 0)})
    figure.savefig(tmp_path / 'figure.png')
    assert [int(axes.images[0].get_array().max()) for axes in figure.axes] == [0, 0, 0, 255, 255, 255]
    assert [part.get_suptitle() for part in figure.subfigs] == ['plain', 'DSKD']
    (legend,) = figure.subfigs[-1].legends
    (patch,) = legend.get_patches()
    assert legend.get_texts()[0].get_text() == 'right' and to_rgb(patch.get_facecolor()) == (0, 1, 0)
