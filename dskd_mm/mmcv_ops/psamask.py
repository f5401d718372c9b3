"""PSANet's attention masks: from windows around each location to maps of the whole image, and back."""

import torch
from torch import Tensor

COLLECT = 0


def entries(
    device: torch.device, size: tuple[int, int], window: tuple[int, int], half: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return, for each pair of a location and an entry of its window inside the map: location, other location, entry."""
    (height, width), (window_height, window_width) = size, window
    axes = [torch.arange(length, device=device) for length in (height, width, window_height, window_width)]
    row, column, window_row, window_column = torch.meshgrid(*axes, indexing='ij')
    other_row, other_column = row + window_row - half[0], column + window_column - half[1]
    inside = (other_row >= 0) & (other_row < height) & (other_column >= 0) & (other_column < width)
    here = row * width + column
    other = other_row * width + other_column
    entry = window_row * window_width + window_column
    return here[inside], other[inside], entry[inside]


def psamask_forward(
    input: Tensor,
    output: Tensor,
    psa_type: int,
    num_: int,
    h_feature: int,
    w_feature: int,
    h_mask: int,
    w_mask: int,
    half_h_mask: int,
    half_w_mask: int,
) -> None:
    """Write the windows of `input` (B, window, H, W) to `output` (B, H x W, H, W); where no window reaches stays as it is."""
    size = (h_feature, w_feature)
    here, other, entry = entries(input.device, size, (h_mask, w_mask), (half_h_mask, half_w_mask))
    to = (other, here) if psa_type == COLLECT else (here, other)
    output.view(num_, h_feature * w_feature, -1)[:, to[0], to[1]] = input.reshape(num_, h_mask * w_mask, -1)[:, entry, here]


def psamask_backward(
    grad_output: Tensor,
    grad_input: Tensor,
    psa_type: int,
    num_: int,
    h_feature: int,
    w_feature: int,
    h_mask: int,
    w_mask: int,
    half_h_mask: int,
    half_w_mask: int,
) -> None:
    """Write the gradient of the windows to `grad_input` (B, window, H, W)."""
    size = (h_feature, w_feature)
    here, other, entry = entries(grad_output.device, size, (h_mask, w_mask), (half_h_mask, half_w_mask))
    at = (other, here) if psa_type == COLLECT else (here, other)
    maps = grad_output.reshape(num_, h_feature * w_feature, -1)
    grad_input.view(num_, h_mask * w_mask, -1)[:, entry, here] = maps[:, at[0], at[1]]
