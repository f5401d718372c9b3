"""RoIAlign on torchvision's kernels."""

import torch
from torch import Tensor
from torchvision.ops import roi_align

from dskd_mm.mmcv_ops.precision import working

MAX = 0


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Write the pooled features of `rois` (K, 5), image index and corners, to `output` (K, C, height, width).

    Raises:
        NotImplementedError: For ``pool_mode='max'``, which torchvision has not.
    """
    if pool_mode == MAX:
        from dskd_mm.mmcv_ops.missing import left_out

        raise NotImplementedError(left_out("roi_align_forward with pool_mode='max'"))
    input, rois = working(input, rois)
    size = (aligned_height, aligned_width)
    output.copy_(torch.ops.torchvision.roi_align(input, rois, spatial_scale, *size, sampling_ratio, aligned))


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Write the gradient (B, C, H, W) of the features to `grad_input`."""
    grad_output, rois = working(grad_output, rois)
    size = (aligned_height, aligned_width)
    if torch.are_deterministic_algorithms_enabled():
        # The CUDA kernel refuses; torchvision has another way for this mode, in Python.
        with torch.enable_grad():
            features = grad_output.new_zeros(grad_input.shape, requires_grad=True)  # any: pooling is linear in them
            pooled = roi_align(features, rois, size, spatial_scale, sampling_ratio, aligned)
        grad_input.copy_(torch.autograd.grad(pooled, features, grad_output)[0])
        return
    grad_input.copy_(
        torch.ops.torchvision._roi_align_backward(
            grad_output, rois, spatial_scale, *size, *grad_input.shape, sampling_ratio, aligned
        )
    )
