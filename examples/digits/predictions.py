"""What a teacher and its students predict on test images, drawn by the hosts' own visualizers."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from mmengine.registry import MODELS, VISUALIZERS
from mmengine.runner import Runner, load_state_dict
from mmengine.structures import InstanceData

from dskd_mm.utils.checkpoint import load_checkpoint_file
from dskd_mm.utils.config import model_config, student_config
from examples.digits.experiments import NAMES, Run

ZOOM = 4  # of the small images: the letters of the visualizers have a size of their own
# Of boxes: they have to stand out from the scenes.
OUTCOMES = {'right': (76, 224, 179), 'wrong': (255, 107, 53), 'missed': (255, 228, 94)}
PRECISION = 0.8
IOU = 0.5


@torch.no_grad()
def predict(run: Run) -> list[Any]:
    """Predict all test images with the plain model that a run has trained.

    Returns:
        list: The host's samples, predictions beside the annotations.
    """
    model = MODELS.build(model_config(student_config(run.cfg)))
    exported = run.work_dir / 'student_last.pth'
    checkpoint = exported if exported.is_file() else run.checkpoint
    load_state_dict(model, load_checkpoint_file(str(checkpoint))['state_dict'], strict=True)
    model.eval()
    loader = Runner.build_dataloader(run.cfg.test_dataloader, seed=0)
    # Into copies: a data set that is kept in memory gives the same sample to the next model.
    return [sample for batch in loader for sample in model.test_step(copy.deepcopy(batch))]


def test_images(run: Run, count: int, zoom: int = ZOOM) -> tuple[list[np.ndarray], dict[str, Any]]:
    """Return the first test images of a run, RGB and enlarged, and what its data set says of itself."""
    dataset = Runner.build_dataloader(run.cfg.test_dataloader, seed=0).dataset
    images = []
    for index in range(min(count, len(dataset))):
        image = dataset[index]['inputs'].numpy().transpose(1, 2, 0)
        # BGR, or grey.
        image = image[..., ::-1] if image.shape[2] == 3 else np.repeat(image, 3, axis=2)
        images.append(image.repeat(zoom, axis=0).repeat(zoom, axis=1))
    return images, dataset.metainfo


def visualizer(kind: str, **meta: Any) -> Any:
    """Build a visualizer of a host; ``meta`` is what it has to know of the data set."""
    built = VISUALIZERS.build(dict(type=kind, name=f'{kind} of the demo'))
    built.dataset_meta = meta
    return built


def classifications(runs: Sequence[Run], count: int = 12) -> Figure:
    """Draw the first test images with the class that each model names, by mmpretrain's ``UniversalVisualizer``."""
    images, _ = test_images(runs[0], count, zoom=14)
    draw = visualizer('mmpretrain.UniversalVisualizer')
    rows = {}
    for run in runs:
        samples = predict(run)
        rate = np.mean([int(sample.pred_label) == int(sample.gt_label) for sample in samples])
        pictures = []
        for image, sample in zip(images, samples, strict=False):
            is_right = int(sample.pred_label) == int(sample.gt_label)
            color = tuple(value / 255 for value in OUTCOMES['right' if is_right else 'wrong'])
            draw.visualize_cls(image, sample, draw_gt=False, draw_score=False, text_cfg=dict(color=color, size=18))
            pictures.append(draw.get_image())
        rows[f'{NAMES[run.role]}: {rate:.1%} of the test images right'] = pictures
    return grid(rows, {name: OUTCOMES[name] for name in ('right', 'wrong')})


def detections(runs: Sequence[Run], count: int = 6) -> Figure:
    """Draw what detectors find in the first scenes, each at the confidence where it has the same precision on all of them.

    A box is right if its IoU with a digit of its class is 0.5 or more; a digit counts once. At the same precision whoever finds
    more is better.
    """
    images, meta = test_images(runs[0], count)
    draw = visualizer('mmdet.DetLocalVisualizer', classes=tuple(OUTCOMES), palette=list(OUTCOMES.values()))

    def drawn(image: np.ndarray, boxes: torch.Tensor, names: Sequence[int], outcomes: Sequence[str]) -> np.ndarray:
        labels = torch.tensor([list(OUTCOMES).index(outcome) for outcome in outcomes], dtype=torch.long)
        found = InstanceData(bboxes=boxes * ZOOM, labels=labels, label_names=[meta['classes'][name] for name in names])
        sample = type(samples[0])(gt_instances=found)
        draw.add_datasample('', image, sample, draw_pred=False)
        return draw.get_image()

    rows: dict[str, list[np.ndarray]] = {}
    for run in runs:
        samples = predict(run)
        judged = [judge(sample.pred_instances, sample.gt_instances) for sample in samples]
        threshold, precision, recall = operating_point(
            torch.cat([scores for scores, _ in judged]),
            torch.cat([right for _, right in judged]),
            sum(len(sample.gt_instances) for sample in samples),
        )
        pictures = []
        for image, sample, (scores, right) in zip(images, samples, judged, strict=False):
            shown = scores >= threshold
            found, truth = sample.pred_instances[shown], sample.gt_instances
            missed = truth[~hit(truth, found[right[shown]])]
            outcomes = ['right' if each else 'wrong' for each in right[shown]] + ['missed'] * len(missed)
            boxes = torch.cat([found.bboxes, corners(missed)])
            pictures.append(drawn(image, boxes, [*found.labels, *missed.labels], outcomes))
        title = f'{NAMES[run.role]}, {run.result:.1f} mAP; from confidence {threshold:.2f} on '
        rows[f'{title}{precision:.0%} of its boxes are right and {recall:.0%} of the digits found'] = pictures
    figure = grid(rows, OUTCOMES)
    figure.suptitle(
        f'Each at the confidence where {PRECISION:.0%} of its boxes in all {len(samples)} test scenes are right', fontsize=10
    )
    return figure


def corners(instances: InstanceData) -> torch.Tensor:
    """Return boxes (N, 4) of left, top, right, bottom; annotated ones are of a class of mmdet's."""
    boxes = instances.bboxes
    return getattr(boxes, 'tensor', boxes)


def judge(found: InstanceData, truth: InstanceData) -> tuple[torch.Tensor, torch.Tensor]:
    """Match predicted boxes to annotated ones of their class by mmdet's own rule, the most confident first, each once.

    Returns:
        tuple[Tensor, Tensor]: Scores (M, ) and which are right (M, ), bool.
    """
    from mmdet.evaluation.functional.mean_ap import tpfp_default

    right = torch.zeros(len(found), dtype=torch.bool)
    for label in found.labels.unique():
        own = found.labels == label
        boxes = torch.cat([found.bboxes[own], found.scores[own, None]], dim=1).numpy()
        same = corners(truth[truth.labels == label]).numpy()
        hits, _ = tpfp_default(boxes, same, gt_bboxes_ignore=same[:0], iou_thr=IOU)
        right[own] = torch.from_numpy(hits[0] > 0)
    return found.scores, right


def hit(truth: InstanceData, found: InstanceData) -> torch.Tensor:
    """Return which annotated boxes are overlapped by a found one of their class, (N, ), bool."""
    from mmdet.structures.bbox import bbox_overlaps

    if not len(found):
        return torch.zeros(len(truth), dtype=torch.bool)
    overlap = bbox_overlaps(corners(truth), found.bboxes)
    return ((overlap >= IOU) & (truth.labels[:, None] == found.labels)).any(dim=1)


def operating_point(scores: torch.Tensor, right: torch.Tensor, count: int) -> tuple[float, float, float]:
    """Find the least confidence at which predictions are as precise as asked for, or the most precise one if none is.

    Args:
        scores (Tensor): Confidences of all predictions, (M, ).
        right (Tensor): Which are right, (M, ), bool.
        count (int): Number of annotated objects.

    Returns:
        tuple[float, float, float]: The confidence, the precision and the recall of predictions from it on.
    """
    if not len(scores):
        return 1.0, 0.0, 0.0
    order = scores.argsort(descending=True, stable=True)
    hits = right[order].cumsum(0)
    precision = hits / torch.arange(1, len(scores) + 1)
    fits = (precision >= PRECISION).nonzero()
    last = int(fits[-1] if len(fits) else precision.argmax())
    return float(scores[order[last]]), float(precision[last]), float(hits[last]) / max(count, 1)


def segmentations(runs: Sequence[Run], count: int = 8) -> Figure:
    """Draw the label maps that segmenters predict for the first scenes, by mmseg's ``SegLocalVisualizer``."""
    images, meta = test_images(runs[0], count)
    draw = visualizer('mmseg.SegLocalVisualizer', classes=meta['classes'], palette=meta['palette'])
    draw.alpha = 1.0
    rows: dict[str, list[np.ndarray]] = {'Image': images}
    for run in runs:
        samples = predict(run)[:count]
        for part in ('gt_sem_seg', 'pred_sem_seg'):
            title = 'Annotation' if part == 'gt_sem_seg' else f'{NAMES[run.role]}, {run.result:.1f} mIoU on all test scenes'
            if title in rows:
                continue
            rows[title] = []
            for image, sample in zip(images, samples, strict=True):
                labels = sample.get(part).data.repeat_interleave(ZOOM, dim=1).repeat_interleave(ZOOM, dim=2)
                enlarged = type(sample)(pred_sem_seg=type(sample.get(part))(data=labels))
                draw.add_datasample('', image, enlarged, draw_gt=False, with_labels=False)
                rows[title].append(draw.get_image())
    return grid(rows, dict(zip(meta['classes'], meta['palette'], strict=True)))


def grid(rows: Mapping[str, Sequence[np.ndarray]], legend: Mapping[str, Sequence[int]]) -> Figure:
    """Arrange pictures, a row for each model.

    Args:
        rows (Mapping[str, Sequence[np.ndarray]]): RGB pictures (H, W, 3) by the model's title.
        legend (Mapping[str, Sequence[int]]): What colours mean: red, green and blue of 0...255.
    """
    count = len(next(iter(rows.values())))
    heights = [10 / count + 0.4] * len(rows)
    heights[-1] += 0.35  # for the legend
    figure = Figure(figsize=(10, sum(heights) + 0.35), dpi=150, layout='constrained')
    # Of one figure the first column would be as wide as the titles.
    parts = figure.subfigures(len(rows), 1, height_ratios=heights, squeeze=False)[:, 0]
    for part, (title, pictures) in zip(parts, rows.items(), strict=True):
        part.suptitle(title, fontsize=9, x=0.01, ha='left')
        for place, picture in zip(part.subplots(1, count, squeeze=False)[0], pictures, strict=True):
            place.imshow(picture)
            place.set(xticks=[], yticks=[])
    handles = [Patch(facecolor=np.array(color) / 255, edgecolor='black', label=name) for name, color in legend.items()]
    parts[-1].legend(
        handles=handles, loc='outside lower center', ncols=len(legend), frameon=False, fontsize=8, handlelength=1.2
    )
    return figure


DRAW = dict(cls=classifications, det=detections, seg=segmentations)
"""What draws the predictions of a task."""
