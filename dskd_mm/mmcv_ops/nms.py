"""Non-maximum suppression: hard (torchvision's kernel), soft, and with the groups of what it suppresses.

As in mmcv, `softnms` and `nms_match` run on the CPU: each step depends on the last, and the boxes of an image are few.
"""

from collections.abc import Iterator

import numpy as np
import torch
import torchvision  # noqa: F401 - registers torch.ops.torchvision
from torch import Tensor

from dskd_mm.mmcv_ops.precision import working

NAIVE, LINEAR, GAUSSIAN = range(3)


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Return the indices of the boxes (N, 4) that are kept, best score first.

    As in mmcv, the threshold is compared in float32, an overlap of exactly the threshold suppresses nothing, and equal scores
    come in the order of `scores.sort`.
    """
    if boxes.numel() == 0:
        return boxes.new_empty(0, dtype=torch.long)
    threshold = float(np.float32(iou_threshold))
    (boxes,) = working(boxes)
    order = scores.sort(descending=True).indices
    if not offset:
        # The kernel sorts in its own way, which leaves sorted scores as they are.
        return order[torch.ops.torchvision.nms(boxes[order], scores[order].to(boxes.dtype), threshold)]
    # torchvision's kernel knows no offset, and shifted corners would be rounded differently.
    groups = greedy(boxes.cpu().numpy(), order.cpu().numpy(), threshold, offset, touching=False)
    return torch.tensor([kept for kept, _ in groups], dtype=torch.long, device=boxes.device)


def nms_match(dets: Tensor, iou_threshold: float) -> list[list[int]]:
    """Return, for each kept box of `dets` (N, 5), its index followed by those of the boxes it suppresses.

    An overlap of exactly the threshold suppresses here.
    """
    dets = working(dets.detach().cpu())[0]
    order = dets[:, 4].contiguous().sort(descending=True).indices.numpy()
    groups = greedy(dets[:, :4].numpy(), order, float(np.float32(iou_threshold)), offset=0, touching=True)
    return [[kept, *suppressed.tolist()] for kept, suppressed in groups]


def greedy(
    boxes: np.ndarray, order: np.ndarray, threshold: float, offset: int, touching: bool
) -> Iterator[tuple[int, np.ndarray]]:
    """Yield each kept box with those it suppresses; `touching`: overlaps of exactly the threshold count."""
    area = areas(boxes, offset)
    compare = np.greater_equal if touching else np.greater
    while order.size:
        first, rest = order[0], order[1:]
        suppressed = compare(overlaps(boxes[first], area[first], boxes[rest], area[rest], offset), threshold)
        yield int(first), rest[suppressed]
        order = rest[~suppressed]


def areas(boxes: np.ndarray, offset: int) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0] + offset) * (boxes[:, 3] - boxes[:, 1] + offset)


def overlaps(box: np.ndarray, area: np.ndarray, boxes: np.ndarray, area_of_boxes: np.ndarray, offset: int) -> np.ndarray:
    """Return the IoU of one box with others; NaN, which no comparison is true of, between boxes without area."""
    size = np.minimum(box[2:], boxes[:, 2:]) - np.maximum(box[:2], boxes[:, :2]) + offset
    size = np.maximum(size, 0)
    intersection = size[:, 0] * size[:, 1]
    with np.errstate(divide='ignore', invalid='ignore'):
        return intersection / (area + area_of_boxes - intersection)


def softnms(
    boxes: Tensor, scores: Tensor, dets: Tensor, iou_threshold: float, sigma: float, min_score: float, method: int, offset: int
) -> Tensor:
    """Write the kept boxes with their lowered scores to the first rows of `dets` (N, 5) and return their indices.

    The order among equal scores is that of mmcv, which swaps boxes instead of moving them up; so are the comparisons in
    float32.
    """
    if boxes.numel() == 0:
        return boxes.new_empty(0, dtype=torch.long)
    rows = torch.cat(working(boxes, scores[:, None]), dim=1).numpy().copy()  # corners and score
    area = areas(rows, offset)
    index = np.arange(len(rows))
    threshold, sigma, min_score = (float(np.float32(value)) for value in (iou_threshold, sigma, min_score))
    count, i = len(rows), 0
    while i < count:
        best = i if np.isnan(rows[i, 4]) else i + int(np.nanargmax(rows[i:count, 4]))
        for array in (rows, area, index):
            array[[i, best]] = array[[best, i]]
        rest = slice(i + 1, count)
        weight = weights(overlaps(rows[i, :4], area[i], rows[rest, :4], area[rest], offset), method, threshold, sigma)
        rows[rest, 4] *= weight
        last = close_gaps(~(rows[rest, 4] < min_score), [array[rest] for array in (rows, area, index)])
        i, count = i + 1, i + 1 + last
    dets[: len(boxes)] = torch.from_numpy(rows).to(dets.dtype)
    return torch.from_numpy(index[:count].copy())


def weights(overlap: np.ndarray, method: int, threshold: float, sigma: float) -> np.ndarray:
    """Return by how much scores are lowered."""
    if method == GAUSSIAN:
        return np.exp(-(overlap * overlap) / sigma)
    return np.where(overlap >= threshold, 0 if method == NAIVE else 1 - overlap, 1).astype(overlap.dtype)


def close_gaps(alive: np.ndarray, arrays: list[np.ndarray]) -> int:
    """Fill each gap, in turn, with the last element that is alive; return how many are."""
    count = int(alive.sum())
    gaps = np.flatnonzero(~alive[:count])
    movers = count + np.flatnonzero(alive[count:])[::-1]
    for array in arrays:
        array[gaps] = array[movers]
    return count
