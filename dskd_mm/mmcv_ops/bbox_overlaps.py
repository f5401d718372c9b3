"""Overlaps of boxes."""

from torch import Tensor

from dskd_mm.mmcv_ops.precision import working

IOU = 0


def bbox_overlaps(bboxes1: Tensor, bboxes2: Tensor, ious: Tensor, mode: int, aligned: bool, offset: int) -> None:
    """Write the overlaps of M boxes with N, or of pairs of boxes if `aligned`, to `ious` (M, N) or (M,).

    `mode` 0 divides the intersection by the union, 1 by the first box.
    """

    def area(boxes: Tensor) -> Tensor:
        return (boxes[..., 2] - boxes[..., 0] + offset) * (boxes[..., 3] - boxes[..., 1] + offset)

    bboxes1, bboxes2 = working(bboxes1, bboxes2)
    first = bboxes1 if aligned else bboxes1[:, None]
    size = (first[..., 2:].minimum(bboxes2[..., 2:]) - first[..., :2].maximum(bboxes2[..., :2]) + offset).clamp(min=0)
    intersection = size[..., 0] * size[..., 1]
    ious.copy_(intersection / (area(first) + area(bboxes2) - intersection if mode == IOU else area(first)))
