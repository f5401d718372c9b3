"""Pictures of predictions: what counts as right, and that all of it is drawn."""

import numpy as np
import pytest

from dskd_mm.visualization import Boxes, plot_detections, plot_segmentations
from dskd_mm.visualization.predictions import MISSED, RIGHT, WRONG, box_iou, match_boxes, mean_iou, strongest


def boxes(*rows: tuple[float, ...], scores: tuple[float, ...] | None = None) -> Boxes:
    """From rows of left, top, right, bottom, label."""
    array = np.array(rows, float).reshape(-1, 5)
    return Boxes(array[:, :4], array[:, 4].astype(int), None if scores is None else np.array(scores))


def test_box_iou_by_hand():
    first = np.array([[0, 0, 2, 2], [5, 5, 5, 5]], float)
    second = np.array([[0, 0, 2, 2], [1, 1, 3, 3], [2, 0, 4, 2]], float)
    np.testing.assert_allclose(box_iou(first, second), [[1, 1 / 7, 0], [0, 0, 0]])


@pytest.mark.parametrize(
    'found, scores, right, seen',
    [
        ([(0, 0, 10, 10, 3)], [0.9], [True], [True, False]),
        ([(0, 0, 10, 10, 4)], [0.9], [False], [False, False]),  # another class
        ([(0, 0, 10, 10, 3), (0, 0, 10, 9, 3)], [0.5, 0.9], [False, True], [True, False]),  # one too many: the weaker
        ([(0, 0, 10, 4, 3)], [0.9], [False], [False, False]),  # not even half of it
        ([(20, 0, 30, 10, 3), (0, 0, 10, 10, 3)], [0.4, 0.9], [True, True], [True, True]),
        ([], [], [], [False, False]),
    ],
)
def test_boxes_are_matched_once_and_by_class(found, scores, right, seen):
    truth = boxes((0, 0, 10, 10, 3), (20, 0, 30, 10, 3))
    got = match_boxes(truth, boxes(*found, scores=tuple(scores)))
    assert (got[0].tolist(), got[1].tolist()) == (right, seen)
    nothing = match_boxes(boxes(), boxes(*found, scores=tuple(scores)))
    assert not nothing[0].any() and not len(nothing[1])


def test_the_strongest_of_overlapping_boxes_is_left():
    found = boxes((0, 0, 10, 10, 1), (0, 0, 10, 9, 2), (20, 0, 30, 10, 1), (40, 0, 50, 10, 1), scores=(0.5, 0.8, 0.6, 0.2))
    left = strongest(found)
    assert left.labels.tolist() == [2, 1] and left.scores.tolist() == [0.8, 0.6] and left.boxes[1].tolist() == [20, 0, 30, 10]
    assert not len(strongest(boxes(scores=())).labels)


def edges(axes) -> dict[str, int]:
    """Number of boxes by colour."""
    from matplotlib.colors import to_hex

    colors = [to_hex(patch.get_edgecolor()).upper() for patch in axes.patches]
    return {color: colors.count(color) for color in set(colors)}


def test_detections_are_marked(tmp_path):
    images = [np.full((40, 40, 3), 60, np.uint8), np.zeros((40, 60, 3), np.uint8)]
    truth = [boxes((0, 0, 10, 10, 1), (20, 20, 30, 30, 0), (30, 0, 40, 10, 0)), boxes()]
    weak = [boxes((0, 0, 10, 10, 0), (30, 0, 40, 10, 0), (5, 5, 9, 9, 0), scores=(0.9, 0.8, 0.1)), boxes(scores=())]
    none = [boxes(scores=()), boxes((1, 1, 5, 5, 1), scores=(0.9,))]
    figure = plot_detections(images, truth, {'Plain': weak, 'DSKD': none}, ['a', 'b'])
    figure.savefig(tmp_path / 'figure.png')
    assert len(figure.axes) == 6
    titles = [axes.get_title() for axes in figure.axes[:3]]
    assert titles == ['Ground truth', 'Plain\n1 right, 1 wrong, 1 missed', 'DSKD\n0 right, 1 wrong, 3 missed']
    assert edges(figure.axes[0]) == {'#FFFFFF': 3}
    assert edges(figure.axes[1]) == {RIGHT: 1, WRONG: 1, MISSED: 1}, 'one found by a wrong name, one not at all'
    assert edges(figure.axes[5]) == {WRONG: 1}
    assert [text.get_text() for text in figure.axes[0].texts] == ['b', 'a', 'a']


def test_mean_iou_by_hand():
    truth = [np.array([[0, 0, 1, 1]]), np.array([[2, 255, 255, 0]])]
    found = [np.array([[0, 1, 1, 1]]), np.array([[2, 1, 1, 0]])]
    # Ignored pixels count for nothing: 2 of 3 of class 0, 2 of 3 of class 1, 1 of 1 of class 2.
    assert mean_iou(truth, found) == pytest.approx((2 / 3 + 2 / 3 + 1) / 3)
    assert mean_iou([np.full((2, 2), 255)], [np.zeros((2, 2), int)]) == 0


def test_label_maps_have_the_palettes_colours(tmp_path):
    image, labels = np.zeros((4, 6, 3), np.uint8), np.zeros((4, 6), np.uint8)
    labels[1, 2], labels[3, 3] = 1, 255
    palette = [(0, 0, 0), (10, 200, 30)]
    figure = plot_segmentations([image], [labels], {'Plain': [labels * 0]}, ['ground', 'thing'], palette)
    figure.savefig(tmp_path / 'figure.png')
    picture = figure.axes[1].images[0].get_array()
    assert tuple(picture[1, 2]) == palette[1] and tuple(picture[0, 0]) == palette[0] and len(set(picture[3, 3])) == 1
    assert figure.axes[2].get_title() == 'Plain\nmIoU of these images: 48 %'
    assert [text.get_text() for text in figure.legends[0].texts] == ['ground', 'thing']
