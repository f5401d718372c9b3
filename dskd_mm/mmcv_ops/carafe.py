"""CARAFE: each output location is a sum of the features around its source, weighed by its own kernel.

One tap of the kernel is added after the other, so memory does not grow with the kernel.
"""

from collections.abc import Iterator

import torch.nn.functional as F
from torch import Tensor

from dskd_mm.mmcv_ops.precision import working


def taps(kernel_size: int) -> Iterator[tuple[int, int, int]]:
    """Yield number, row and column of each tap."""
    for tap in range(kernel_size**2):
        yield tap, tap // kernel_size, tap % kernel_size


def split(masks: Tensor, group_size: int, kernel_size: int) -> Tensor:
    """Return masks (B, groups, taps, 1, sH, sW), whose fourth axis stands for the channels of a group."""
    batch, _, height, width = masks.shape
    return masks.view(batch, group_size, kernel_size**2, 1, height, width)


def enlarge(maps: Tensor, scale: int) -> Tensor:
    return maps.repeat_interleave(scale, dim=-2).repeat_interleave(scale, dim=-1)


def carafe_naive_forward(
    features: Tensor, masks: Tensor, output: Tensor, kernel_size: int, group_size: int, scale_factor: int
) -> None:
    """Write the enlarged `features` (B, C, H, W) to `output` (B, C, sH, sW).

    Args:
        features (Tensor): The maps to enlarge.
        masks (Tensor): The kernel of each output location, (B, groups x kernel_size^2, sH, sW).
        output (Tensor): Takes the result.
        kernel_size (int): Height and width of the kernels, odd.
        group_size (int): Number of groups of channels.
        scale_factor (int): s.
    """
    maps, kernels = working(features, masks)
    batch, channels, height, width = maps.shape
    kernels = split(kernels, group_size, kernel_size)
    padded = F.pad(maps, [kernel_size // 2] * 4)
    total = maps.new_zeros(())
    for tap, row, column in taps(kernel_size):
        piece = enlarge(padded[:, :, row : row + height, column : column + width], scale_factor)
        piece = piece.view(batch, group_size, channels // group_size, *piece.shape[2:])
        total = total + piece * kernels[:, :, tap]
    output.copy_(total.view(output.shape))


def carafe_naive_backward(
    top_grad: Tensor,
    features: Tensor,
    masks: Tensor,
    bottom_grad: Tensor,
    mask_grad: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Write the gradients of features and masks, given that of the output, `top_grad` (B, C, sH, sW)."""
    maps, kernels, gradient = working(features, masks, top_grad)
    batch, channels, height, width = maps.shape
    kernels = split(kernels, group_size, kernel_size)
    padded = F.pad(maps, [kernel_size // 2] * 4)
    gradient = gradient.view(batch, group_size, channels // group_size, *gradient.shape[2:])
    padded_grad, kernels_grad = padded.new_zeros(padded.shape), kernels.new_zeros(kernels.shape)
    for tap, row, column in taps(kernel_size):
        area = (slice(None), slice(None), slice(row, row + height), slice(column, column + width))
        piece = enlarge(padded[area], scale_factor).view(gradient.shape)
        kernels_grad[:, :, tap] = (piece * gradient).sum(2, keepdim=True)
        weighed = (gradient * kernels[:, :, tap]).view(batch, channels, height, scale_factor, width, scale_factor)
        padded_grad[area] += weighed.sum((3, 5))
    border = kernel_size // 2
    bottom_grad.copy_(padded_grad[:, :, border : border + height, border : border + width])
    mask_grad.copy_(kernels_grad.view(mask_grad.shape))


def carafe_forward(
    features: Tensor,
    masks: Tensor,
    rfeatures: Tensor,
    routput: Tensor,
    rmasks: Tensor,
    output: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Do as `carafe_naive_forward`, and keep the features in `rfeatures` for `carafe_backward`."""
    rfeatures.copy_(features)
    carafe_naive_forward(features, masks, output, kernel_size, group_size, scale_factor)


def carafe_backward(
    top_grad: Tensor,
    rfeatures: Tensor,
    masks: Tensor,
    rtop_grad: Tensor,
    rbottom_grad_hs: Tensor,
    rbottom_grad: Tensor,
    rmask_grad: Tensor,
    bottom_grad: Tensor,
    mask_grad: Tensor,
    kernel_size: int,
    group_size: int,
    scale_factor: int,
) -> None:
    """Do as `carafe_naive_backward`, with the features that `carafe_forward` kept."""
    carafe_naive_backward(top_grad, rfeatures, masks, bottom_grad, mask_grad, kernel_size, group_size, scale_factor)
