"""RoIPool as mmcv defines it: torchvision's kernel of that name rounds its bins otherwise."""

import torch
from torch import Tensor

from dskd_mm.mmcv_ops.precision import working


def edges(start: Tensor, end: Tensor, bins: int, limit: int) -> tuple[list[list[int]], list[list[int]]]:
    """Return where each bin of each region starts and ends, cut at the map."""
    number = torch.arange(bins, device=start.device, dtype=start.dtype)
    size = (end - start)[:, None] / bins
    low = (number * size + start[:, None]).floor().clamp(0, limit).long()
    high = ((number + 1) * size + start[:, None]).ceil().clamp(0, limit).long()
    return low.tolist(), high.tolist()


def roi_pool_forward(
    input: Tensor, rois: Tensor, output: Tensor, argmax: Tensor, pooled_height: int, pooled_width: int, spatial_scale: float
) -> None:
    """Write the maximum of each bin to `output` (K, C, height, width), its place in the map to `argmax`, -1 in empty bins."""
    height, width = input.shape[2:]
    input, rois = working(input, rois)
    x1, y1 = (rois[:, i] * spatial_scale for i in (1, 2))
    x2, y2 = ((rois[:, i] + 1) * spatial_scale for i in (3, 4))
    rows, columns = edges(y1, y2, pooled_height, height), edges(x1, x2, pooled_width, width)
    proper = ((x2 > x1) & (y2 > y1)).tolist()
    output.zero_()
    argmax.fill_(-1)
    for k, image in enumerate(rois[:, 0].long().tolist()):
        if not proper[k]:
            continue
        # The maximum of each row's piece first, then of the pieces: the first of equal values, row by row, is kept.
        for pw, (left, right) in enumerate(zip(columns[0][k], columns[1][k], strict=True)):
            if left >= right:
                continue
            values, places = input[image, :, :, left:right].max(dim=2)
            for ph, (top, bottom) in enumerate(zip(rows[0][k], rows[1][k], strict=True)):
                if top >= bottom:
                    continue
                best, row = values[:, top:bottom].max(dim=1)
                column = places[:, top:bottom].gather(1, row[:, None])[:, 0] + left
                output[k, :, ph, pw] = best.to(output.dtype)
                argmax[k, :, ph, pw] = ((row + top) * width + column).to(argmax.dtype)


def roi_pool_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax: Tensor,
    grad_input: Tensor,
    pooled_height: int,
    pooled_width: int,
    spatial_scale: float,
) -> None:
    """Add the gradient of each maximum at its place in `grad_input` (B, C, H, W)."""
    channels = grad_input.shape[1]
    maps = grad_input.view(-1, grad_input[0, 0].numel())  # a row for each image and channel
    row = rois[:, 0].long()[:, None] * channels + torch.arange(channels, device=rois.device)
    row = row[:, :, None, None].expand_as(argmax)
    found = argmax >= 0
    maps.index_put_((row[found], argmax[found].long()), grad_output[found], accumulate=True)
