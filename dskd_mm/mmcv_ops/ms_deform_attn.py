"""Multi-scale deformable attention by `grid_sample`, with autograd for its gradients."""

import torch
import torch.nn.functional as F
from torch import Tensor

from dskd_mm.mmcv_ops.precision import working


def attend(value: Tensor, spatial_shapes: Tensor, sampling_locations: Tensor, attention_weights: Tensor) -> Tensor:
    """Return the weighted samples of all levels, (B, queries, heads x channels)."""
    batch, queries, heads, _, points, _ = sampling_locations.shape
    sizes = spatial_shapes.tolist()
    levels = value.split([height * width for height, width in sizes], dim=1)
    grids = (2 * sampling_locations - 1).permute(3, 0, 2, 1, 4, 5).flatten(1, 2)  # levels, B x heads, queries, points, 2
    weights = attention_weights.permute(3, 0, 2, 1, 4).reshape(len(sizes), batch * heads, 1, queries, points)
    total = value.new_zeros(())
    for level, (height, width), grid, weight in zip(levels, sizes, grids, weights, strict=True):
        maps = level.permute(0, 2, 3, 1).reshape(batch * heads, -1, height, width)
        samples = F.grid_sample(maps, grid, mode='bilinear', padding_mode='zeros', align_corners=False)
        total = total + (samples * weight).sum(-1)
    return total.view(batch, -1, queries).transpose(1, 2).contiguous()


def ms_deform_attn_forward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    im2col_step: int,
) -> Tensor:
    """Return the attention's output (B, queries, heads x channels).

    Args:
        value (Tensor): Features of all levels, (B, locations, heads, channels).
        value_spatial_shapes (Tensor): Height and width of each level, (levels, 2).
        value_level_start_index (Tensor): Not used, as it follows from the shapes.
        sampling_locations (Tensor): x and y, of which [0, 1] lies in the image, (B, queries, heads, levels, points, 2).
        attention_weights (Tensor): (B, queries, heads, levels, points).
        im2col_step (int): Not used.
    """
    tensors = working(value, sampling_locations, attention_weights)
    return attend(tensors[0], value_spatial_shapes, *tensors[1:]).to(value.dtype)


def ms_deform_attn_backward(
    value: Tensor,
    value_spatial_shapes: Tensor,
    value_level_start_index: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    grad_output: Tensor,
    grad_value: Tensor,
    grad_sampling_loc: Tensor,
    grad_attn_weight: Tensor,
    im2col_step: int,
) -> None:
    """Write the gradients of value, sampling locations and attention weights."""
    with torch.enable_grad():
        leaves = [t.detach().requires_grad_() for t in working(value, sampling_locations, attention_weights)]
        output = attend(leaves[0], value_spatial_shapes, *leaves[1:])
        gradients = torch.autograd.grad(output, leaves, grad_output.to(output.dtype))
    for target, gradient in zip((grad_value, grad_sampling_loc, grad_attn_weight), gradients, strict=True):
        target.copy_(gradient)
