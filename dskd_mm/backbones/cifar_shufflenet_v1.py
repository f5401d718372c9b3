"""ShuffleNetV1 for 32x32 images."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dskd_mm.backbones.base import CIFARBackbone, channel_shuffle
from dskd_mm.registry import MODELS


class ShuffleUnit(nn.Module):
    """Group 1x1, shuffle, depthwise 3x3, group 1x1; added to its input or concatenated with it.

    With ``stride=2`` the input is average-pooled and concatenated, so that the convolutions make
    only ``out_channels - in_channels`` channels.

    Args:
        in_channels (int): Channels of the input.
        out_channels (int): Channels of the output, the concatenated ones included.
        stride (int): 1 or 2.
        groups (int): Groups of the last 1x1 convolution.
        first_groups (int, optional): Groups of the first one and of the shuffle. Defaults to
            ``groups``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        groups: int,
        first_groups: int | None = None,
    ) -> None:
        super().__init__()
        self.first_groups = groups if first_groups is None else first_groups
        branch = out_channels - in_channels if stride == 2 else out_channels
        mid = branch // 4
        self.conv1 = nn.Conv2d(in_channels, mid, 1, groups=self.first_groups, bias=False)
        self.bn1 = nn.BatchNorm2d(mid)
        self.conv2 = nn.Conv2d(mid, mid, 3, stride=stride, padding=1, groups=mid, bias=False)
        self.bn2 = nn.BatchNorm2d(mid)
        self.conv3 = nn.Conv2d(mid, branch, 1, groups=groups, bias=False)
        self.bn3 = nn.BatchNorm2d(branch)
        self.pool = nn.AvgPool2d(3, stride=2, padding=1) if stride == 2 else None

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C_in, H, W) to (B, C_out, H / stride, W / stride)."""
        out = F.relu(self.bn1(self.conv1(x)))
        out = channel_shuffle(out, self.first_groups)
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        out = out + x if self.pool is None else torch.cat([out, self.pool(x)], dim=1)
        return F.relu(out)


@MODELS.register_module()
class CIFARShuffleNetV1(CIFARBackbone):
    """ShuffleNetV1 with three groups, as in the CIFAR-100 tables.

    From `ShuffleNet <https://arxiv.org/abs/1707.01083>`_ with the differences of the network of
    `CRD <https://arxiv.org/abs/1910.10699>`_: a 1x1 stem without stride or pooling, and a ReLU
    after the depthwise convolutions, which the paper leaves out.

    Args:
        groups (int): Groups of the 1x1 convolutions. Defaults to 3.
        stage_channels (Sequence[int]): Width of each stage. Each width and each increase (the
            first over the stem's 24) must be divisible by ``4 * groups``. Defaults to
            (240, 480, 960), the paper's widths for three groups.
        in_channels (int): Channels of the image. Defaults to 3.
        out_indices (int | Sequence[int]): Stages (0 to 2) whose maps are returned: (B, 240, 16,
            16), (B, 480, 8, 8), (B, 960, 4, 4) for 32x32 images. Defaults to (2, ).
        init_cfg (dict | Sequence[dict], optional): Initialisation. Defaults to None, PyTorch's own,
            as the tables' network has it.
    """

    num_units = (4, 8, 4)
    stem_channels = 24

    def __init__(
        self,
        groups: int = 3,
        stage_channels: Sequence[int] = (240, 480, 960),
        in_channels: int = 3,
        out_indices: int | Sequence[int] = (2,),
        init_cfg: dict | Sequence[dict] | None = None,
    ) -> None:
        if len(stage_channels) != len(self.num_units):
            raise ValueError(f'stage_channels must have {len(self.num_units)} numbers, but got {stage_channels}')
        super().__init__(stage_channels, out_indices, init_cfg)
        self.conv1 = nn.Conv2d(in_channels, self.stem_channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(self.stem_channels)
        previous = self.stem_channels
        for index in range(self.num_stages):
            width = self.stage_channels[index]
            # The stem is too narrow for a group convolution to pay (section 3.2 of the paper).
            first_groups = 1 if index == 0 else groups
            units = [ShuffleUnit(previous, width, 2, groups, first_groups)]
            units += [ShuffleUnit(width, width, 1, groups) for _ in range(self.num_units[index] - 1)]
            self.add_stage(f'layer{index + 1}', nn.Sequential(*units))
            previous = width

    def forward_stem(self, x: Tensor) -> Tensor:
        """Map images (B, in_channels, H, W) to (B, 24, H, W)."""
        return F.relu(self.bn1(self.conv1(x)))
