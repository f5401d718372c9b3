"""Predictions of detectors and segmenters beside the truth."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from dskd_mm.visualization.style import new_figure

# They have to stand out from photographs, dark or light.
RIGHT, WRONG, MISSED = '#4CE0B3', '#FF6B35', '#FFE45E'
SIDE = 2.3  # of a panel, in inches


@dataclass
class Boxes:
    """Boxes in an image, annotated or predicted.

    Attributes:
        boxes (np.ndarray): (N, 4): left, top, right, bottom in pixels.
        labels (np.ndarray): (N, ): classes.
        scores (np.ndarray, optional): (N, ): confidences of predictions. Defaults to None.
    """

    boxes: np.ndarray
    labels: np.ndarray
    scores: np.ndarray | None = None


def plot_detections(
    images: Sequence[np.ndarray],
    truth: Sequence[Boxes],
    predictions: Mapping[str, Sequence[Boxes]],
    class_names: Sequence[str],
    score_threshold: float = 0.3,
    iou_threshold: float = 0.5,
) -> Figure:
    """Plot images with their true boxes and, beside, those of several detectors, marked as right, wrong or missed.

    Of predictions that overlap, whatever their classes, only the most confident one is shown. Missed is what overlaps none.

    Args:
        images (Sequence[np.ndarray]): RGB images (H, W, 3), uint8.
        truth (Sequence[Boxes]): The annotated boxes of each image.
        predictions (Mapping[str, Sequence[Boxes]]): What each detector found in each image, by the detector's name.
        class_names (Sequence[str]): Written on the boxes.
        score_threshold (float): Predictions that are less confident are not shown. Defaults to 0.3.
        iou_threshold (float): A prediction is right if it overlaps a true box of its class that much, and hidden if it
            overlaps a more confident prediction that much. Defaults to 0.5.

    Returns:
        Figure: The picture, one row an image, with the counts of each detector above its column.
    """
    columns = {'Ground truth': None, **predictions}
    figure, grid = new_figure(SIDE * len(columns), SIDE * len(images) + 0.9, len(images), len(columns), squeeze=False)
    for index, (name, found) in enumerate(columns.items()):
        right = wrong = missed = 0
        for row, image, true, which in zip(grid, images, truth, range(len(images)), strict=True):
            axes = row[index]
            axes.imshow(image)
            if found is None:
                _draw_boxes(axes, true, class_names, 'white')
                continue
            shown = strongest(found[which], score_threshold, iou_threshold)
            hits, _ = match_boxes(true, shown, iou_threshold)
            # What was found under a wrong name is not missed.
            seen = (box_iou(true.boxes, shown.boxes) >= iou_threshold).any(axis=1)
            _draw_boxes(axes, _select(true, np.logical_not(seen)), class_names, MISSED, linestyle='--')
            _draw_boxes(axes, _select(shown, ~hits), class_names, WRONG)
            _draw_boxes(axes, _select(shown, hits), class_names, RIGHT)
            right, wrong, missed = right + hits.sum(), wrong + (~hits).sum(), missed + (~seen).sum()
        title = name if found is None else f'{name}\n{right} right, {wrong} wrong, {missed} missed'
        grid[0][index].set_title(title, fontsize=9)
    _hide_ticks(grid)
    figure.legend(
        handles=[
            Patch(facecolor='none', edgecolor=RIGHT, linewidth=2, label='right'),
            Patch(facecolor='none', edgecolor=WRONG, linewidth=2, label='wrong class or place'),
            Line2D([], [], color=MISSED, linewidth=2, linestyle='--', label='missed'),
        ],
        loc='outside lower center',
        ncols=3,
        frameon=True,
        facecolor='#444444',
        labelcolor='white',
    )
    return figure


def strongest(found: Boxes, score_threshold: float = 0.3, iou_threshold: float = 0.5) -> Boxes:
    """Leave out predictions that are unsure or overlap a more confident one.

    Args:
        found (Boxes): M predicted boxes with scores.
        score_threshold (float): Least confidence. Defaults to 0.3.
        iou_threshold (float): Overlap from which on two predictions are of the same thing. Defaults to 0.5.

    Returns:
        Boxes: What is left, the most confident first.
    """
    assert found.scores is not None
    found = _select(found, found.scores >= score_threshold)
    assert found.scores is not None
    found = _select(found, np.argsort(-found.scores, kind='stable'))
    overlap = box_iou(found.boxes, found.boxes)
    kept: list[int] = []
    for index in range(len(found.labels)):
        if not kept or overlap[index, kept].max() < iou_threshold:
            kept.append(index)
    return _select(found, np.array(kept, int))


def match_boxes(truth: Boxes, found: Boxes, iou_threshold: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Match found boxes to true ones of their class, the most confident first, each true box once.

    Args:
        truth (Boxes): N annotated boxes.
        found (Boxes): M predicted ones with scores.
        iou_threshold (float): Least overlap. Defaults to 0.5.

    Returns:
        tuple[np.ndarray, np.ndarray]: Which of the predicted boxes are right, (M, ), and which of the annotated ones are
        found, (N, ); both bool.
    """
    right, seen = np.zeros(len(found.labels), bool), np.zeros(len(truth.labels), bool)
    if not len(truth.labels) or not len(found.labels):
        return right, seen
    overlap = box_iou(found.boxes, truth.boxes) * (found.labels[:, None] == truth.labels)
    assert found.scores is not None
    for index in np.argsort(-found.scores, kind='stable'):
        free = np.where(seen, 0, overlap[index])
        best = int(free.argmax())
        if free[best] >= iou_threshold:
            right[index] = seen[best] = True
    return right, seen


def box_iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes (M, 4) and (N, 4) of left, top, right, bottom; (M, N)."""
    low = np.maximum(first[:, None, :2], second[None, :, :2])
    high = np.minimum(first[:, None, 2:], second[None, :, 2:])
    shared = (high - low).clip(min=0).prod(axis=2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).clip(min=0).prod(axis=1) for boxes in (first, second)]
    return shared / np.maximum(areas[0][:, None] + areas[1][None] - shared, 1e-9)


def plot_segmentations(
    images: Sequence[np.ndarray],
    truth: Sequence[np.ndarray],
    predictions: Mapping[str, Sequence[np.ndarray]],
    class_names: Sequence[str],
    palette: Sequence[Sequence[int]],
    ignore_index: int = 255,
) -> Figure:
    """Plot images, their true label maps and, beside, those of several segmenters.

    Args:
        images (Sequence[np.ndarray]): RGB images (H, W, 3), uint8.
        truth (Sequence[np.ndarray]): The annotated label map (H, W) of each image.
        predictions (Mapping[str, Sequence[np.ndarray]]): Label maps (H, W) that each segmenter predicts, by its name.
        class_names (Sequence[str]): For the legend.
        palette (Sequence[Sequence[int]]): Colour of each class: red, green, blue, 0...255.
        ignore_index (int): Label of pixels that count for nothing, shown in grey. Defaults to 255.

    Returns:
        Figure: The picture, one row an image, with the mean IoU over these images above each segmenter's column.
    """
    colors = np.full((256, 3), 128, np.uint8)
    colors[: len(palette)] = palette
    columns = {'Image': images, 'Ground truth': [colors[labels] for labels in truth]}
    titles = {name: name for name in columns}
    for name, maps in predictions.items():
        columns[name] = [colors[labels] for labels in maps]
        titles[name] = f'{name}\nmIoU of these images: {100 * mean_iou(truth, maps, ignore_index):.0f} %'
    # The legend needs a line for so many classes.
    lines = -(-len(class_names) // 12)
    height = SIDE * len(images) + 0.5 + 0.25 * lines
    figure, grid = new_figure(SIDE * len(columns), height, len(images), len(columns), squeeze=False)
    for index, (name, pictures) in enumerate(columns.items()):
        for row, picture in zip(grid, pictures, strict=True):
            row[index].imshow(picture, interpolation='nearest')
        grid[0][index].set_title(titles[name], fontsize=9)
    _hide_ticks(grid)
    figure.legend(
        handles=[
            Patch(facecolor=np.array(color) / 255, edgecolor='black', linewidth=0.5, label=name)
            for name, color in zip(class_names, palette, strict=True)
        ],
        loc='outside lower center',
        ncols=12,
        frameon=False,
        fontsize=8,
        handlelength=1.2,
        columnspacing=1.2,
    )
    return figure


def mean_iou(truth: Sequence[np.ndarray], predictions: Sequence[np.ndarray], ignore_index: int = 255) -> float:
    """Mean intersection over union, over the classes that occur in the label maps or the predictions (H, W) of all images."""
    true = np.concatenate([labels.ravel() for labels in truth])
    found = np.concatenate([labels.ravel() for labels in predictions])
    counted = true != ignore_index
    true, found = true[counted], found[counted]
    classes = np.union1d(true, found)
    shared = [((true == k) & (found == k)).sum() / ((true == k) | (found == k)).sum() for k in classes]
    return float(np.mean(shared)) if shared else 0.0


def _select(boxes: Boxes, which: np.ndarray) -> Boxes:
    scores = None if boxes.scores is None else boxes.scores[which]
    return Boxes(boxes.boxes[which], boxes.labels[which], scores)


def _draw_boxes(axes: Any, boxes: Boxes, class_names: Sequence[str], color: str, linestyle: str = '-') -> None:
    for (left, top, right, bottom), label in zip(boxes.boxes, boxes.labels, strict=True):
        axes.add_patch(
            Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor=color, linewidth=1.4, linestyle=linestyle)
        )
        axes.text(
            left,
            top,
            class_names[label],
            color='black',
            fontsize=7,
            ha='left',
            va='center',
            clip_on=True,
            bbox=dict(boxstyle='square,pad=0.1', facecolor=color, edgecolor='none'),
        )


def _hide_ticks(grid: np.ndarray) -> None:
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
