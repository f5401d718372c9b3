"""Predictions of several models side by side, drawn by the hosts' own visualizers."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from mmengine.registry import VISUALIZERS

from dskd_mm.visualization.images import SURE

VISUALIZERS_OF = dict(
    pred_label='mmpretrain.UniversalVisualizer',
    pred_instances='mmdet.DetLocalVisualizer',
    pred_sem_seg='mmseg.SegLocalVisualizer',
)
"""What draws a sample, by the prediction that is in it."""
LEAST = 320
"""Small images are enlarged until their longer side has so many pixels: the letters have a size of their own."""


def draw_prediction(
    picture: np.ndarray, sample: Any, names: Sequence[str], palette: Sequence[tuple[int, int, int]]
) -> np.ndarray:
    """Return a picture with what a model predicts on it.

    Args:
        picture (np.ndarray): The model's input, (H, W, 3), uint8.
        sample (Any): The host's sample with a prediction in pixels of it.
        names (Sequence[str]): Names of the classes.
        palette (Sequence[tuple]): Their colours.
    """
    kind = next(name for name in VISUALIZERS_OF if name in sample)
    visualizer: Any = VISUALIZERS.build(dict(type=VISUALIZERS_OF[kind], name=f'{kind} side by side'))
    visualizer.dataset_meta = dict(classes=tuple(names), palette=list(palette))
    zoom = max(1, -(-LEAST // max(picture.shape[:2])))
    picture = picture.repeat(zoom, axis=0).repeat(zoom, axis=1)
    shown = copy.deepcopy(sample)  # clones share their fields
    if kind == 'pred_label':
        visualizer.visualize_cls(picture, shown, classes=list(names), draw_gt=False, text_cfg=dict(size=14))
        return visualizer.get_image()
    if kind == 'pred_instances':
        found = shown.pred_instances
        found.bboxes = found.bboxes * zoom
        if 'masks' in found:
            found.masks = found.masks.repeat_interleave(zoom, dim=1).repeat_interleave(zoom, dim=2)
        visualizer.add_datasample('', picture, shown, draw_gt=False, pred_score_thr=SURE)
    else:
        labels = shown.pred_sem_seg.data.repeat_interleave(zoom, dim=1).repeat_interleave(zoom, dim=2)
        shown.pred_sem_seg = type(shown.pred_sem_seg)(data=labels)
        visualizer.add_datasample('', picture, shown, draw_gt=False, with_labels=False)
    return visualizer.get_image()


def grid(rows: Mapping[str, Sequence[np.ndarray]], width: float = 2.3) -> Figure:
    """Arrange pictures, a row for each model.

    Args:
        rows (Mapping[str, Sequence[np.ndarray]]): RGB pictures (H, W, 3) by the model's title.
        width (float): Of a picture, in inches. Defaults to 2.3.
    """
    count = max(map(len, rows.values()))
    heights = [max(width * image.shape[0] / image.shape[1] for image in pictures) + 0.35 for pictures in rows.values()]
    figure = Figure(figsize=(max(width * count, 4), sum(heights) + 0.1), dpi=130, layout='constrained')
    # Of one figure the first column would be as wide as the titles.
    parts = figure.subfigures(len(rows), 1, height_ratios=heights, squeeze=False)[:, 0]
    for part, (title, pictures) in zip(parts, rows.items(), strict=True):
        part.suptitle(title, fontsize=9, x=0.01, ha='left')
        for place, picture in zip(part.subplots(1, count, squeeze=False)[0], pictures, strict=True):
            place.imshow(picture)
            place.set(xticks=[], yticks=[])
    return figure
