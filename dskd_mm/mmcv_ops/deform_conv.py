"""Deformable convolution, plain and modulated, on torchvision's kernels."""

from typing import Any

import torch
import torchvision  # noqa: F401 - registers torch.ops.torchvision
from torch import Tensor

from dskd_mm.mmcv_ops.precision import working

Pair = tuple[int, int]


def geometry(stride: Pair, padding: Pair, dilation: Pair, groups: int, offset_groups: int, modulated: bool) -> tuple[Any, ...]:
    """Return the last arguments of torchvision's kernels; each pair is height and width."""
    return (*stride, *padding, *dilation, groups, offset_groups, modulated)


def plain_geometry(
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
) -> tuple[Any, ...]:
    return geometry((dH, dW), (padH, padW), (dilationH, dilationW), group, deformable_group, modulated=False)


def plain_gradients(
    input: Tensor, weight: Tensor, offset: Tensor, grad_output: Tensor, shape: tuple[Any, ...]
) -> tuple[Tensor, ...]:
    """Return the gradients of input, weight and offset."""
    grad_output, input, weight, offset = working(grad_output, input, weight, offset)
    mask, bias = input.new_zeros((input.shape[0], 1)), weight.new_zeros(weight.shape[0])
    return torch.ops.torchvision._deform_conv2d_backward(grad_output, input, weight, offset, mask, bias, *shape)[:3]


def deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    offset: Tensor,
    output: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Write the convolution of `input` (B, C, H, W) to `output`; `columns`, `ones` and `im2col_step` are not used."""
    shape = plain_geometry(dW, dH, padW, padH, dilationW, dilationH, group, deformable_group)
    input, weight, offset = working(input, weight, offset)
    mask, bias = input.new_zeros((input.shape[0], 1)), weight.new_zeros(weight.shape[0])
    output.copy_(torch.ops.torchvision.deform_conv2d(input, weight, offset, mask, bias, *shape))


def deform_conv_backward_input(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradInput: Tensor,
    gradOffset: Tensor,
    weight: Tensor,
    columns: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    im2col_step: int,
) -> None:
    """Write the gradients of input and offset.

    torchvision's kernel returns all gradients at once, and mmcv asks for those of the weight in a call of its own: that call
    computes them again.
    """
    shape = plain_geometry(dW, dH, padW, padH, dilationW, dilationH, group, deformable_group)
    grad_input, _, grad_offset = plain_gradients(input, weight, offset, gradOutput, shape)
    gradInput.copy_(grad_input)
    gradOffset.copy_(grad_offset)


def deform_conv_backward_parameters(
    input: Tensor,
    offset: Tensor,
    gradOutput: Tensor,
    gradWeight: Tensor,
    columns: Tensor,
    ones: Tensor,
    kW: int,
    kH: int,
    dW: int,
    dH: int,
    padW: int,
    padH: int,
    dilationW: int,
    dilationH: int,
    group: int,
    deformable_group: int,
    scale: float,
    im2col_step: int,
) -> None:
    """Add `scale` times the gradient of the weight to `gradWeight`."""
    shape = plain_geometry(dW, dH, padW, padH, dilationW, dilationH, group, deformable_group)
    # The weight's gradient does not depend on the weight, which mmcv does not hand over.
    grad_weight = plain_gradients(input, torch.zeros_like(gradWeight), offset, gradOutput, shape)[1]
    gradWeight.add_(grad_weight.to(gradWeight.dtype), alpha=scale)


def modulated_deform_conv_forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    output: Tensor,
    columns: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Write the convolution of `input` (B, C, H, W), weighed by `mask`, to `output`."""
    shape = geometry((stride_h, stride_w), (pad_h, pad_w), (dilation_h, dilation_w), group, deformable_group, modulated=True)
    input, weight, offset, mask, bias = working(input, weight, offset, mask, bias)
    if not with_bias:
        bias = weight.new_zeros(weight.shape[0])
    output.copy_(torch.ops.torchvision.deform_conv2d(input, weight, offset, mask, bias, *shape))


def modulated_deform_conv_backward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor,
    ones: Tensor,
    offset: Tensor,
    mask: Tensor,
    columns: Tensor,
    grad_input: Tensor,
    grad_weight: Tensor,
    grad_bias: Tensor,
    grad_offset: Tensor,
    grad_mask: Tensor,
    grad_output: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    pad_h: int,
    pad_w: int,
    dilation_h: int,
    dilation_w: int,
    group: int,
    deformable_group: int,
    with_bias: bool,
) -> None:
    """Write the gradients of all inputs."""
    shape = geometry((stride_h, stride_w), (pad_h, pad_w), (dilation_h, dilation_w), group, deformable_group, modulated=True)
    tensors = working(grad_output, input, weight, offset, mask, bias)
    if not with_bias:
        tensors = (*tensors[:-1], tensors[2].new_zeros(weight.shape[0]))
    gradients = torch.ops.torchvision._deform_conv2d_backward(*tensors, *shape)
    for target, gradient in zip((grad_input, grad_weight, grad_offset, grad_mask, grad_bias), gradients, strict=True):
        if target.numel():
            target.copy_(gradient)
