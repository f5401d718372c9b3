"""ShuffleNetV2 for 32x32 images."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dskd_mm.backbones.base import CIFARBackbone, channel_shuffle, conv_bn
from dskd_mm.registry import MODELS


class BasicUnit(nn.Module):
    """Half of the channels pass unchanged, the other half through three convolutions.

    Args:
        channels (int): Even number of channels of the input and of the output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        half = channels // 2
        self.branch = nn.Sequential(
            *conv_bn(half, half, 1),
            *conv_bn(half, half, 3, groups=half, act=False),
            *conv_bn(half, half, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        kept, changed = x.chunk(2, dim=1)
        return channel_shuffle(torch.cat([kept, self.branch(changed)], dim=1), 2)


class DownUnit(nn.Module):
    """Both branches see all channels and halve the size; each makes half of the output.

    Args:
        in_channels (int): Channels of the input.
        out_channels (int): Even number of channels of the output.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        half = out_channels // 2
        self.branch1 = nn.Sequential(
            *conv_bn(in_channels, in_channels, 3, stride=2, groups=in_channels, act=False),
            *conv_bn(in_channels, half, 1),
        )
        self.branch2 = nn.Sequential(
            *conv_bn(in_channels, half, 1),
            *conv_bn(half, half, 3, stride=2, groups=half, act=False),
            *conv_bn(half, half, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C_in, H, W) to (B, C_out, H / 2, W / 2)."""
        return channel_shuffle(torch.cat([self.branch1(x), self.branch2(x)], dim=1), 2)


@MODELS.register_module()
class CIFARShuffleNetV2(CIFARBackbone):
    """ShuffleNetV2 as in the CIFAR-100 tables, where it has width 1.

    From `ShuffleNet V2 <https://arxiv.org/abs/1807.11164>`_; as in `CRD
    <https://arxiv.org/abs/1910.10699>`_ the stem is a 1x1 convolution without stride or pooling.

    Args:
        widen_factor (float): 0.5, 1.0, 1.5 or 2.0. Defaults to 1.0.
        in_channels (int): Channels of the image. Defaults to 3.
        out_indices (int | Sequence[int]): Stages whose maps are returned: 0 to 2 are the groups of
            units (sizes 16, 8, 4 for 32x32 images), 3 the last 1x1 convolution (4x4).
            Defaults to (3, ).
        init_cfg (dict | Sequence[dict], optional): Initialisation. Defaults to None, PyTorch's own,
            as the tables' network has it.
    """

    # At 2.0 the paper's table 5 has 244 where the tables' network has 224.
    arch_settings = {
        0.5: (48, 96, 192, 1024),
        1.0: (116, 232, 464, 1024),
        1.5: (176, 352, 704, 1024),
        2.0: (244, 488, 976, 2048),
    }
    num_units = (4, 8, 4)
    stem_channels = 24

    def __init__(
        self,
        widen_factor: float = 1.0,
        in_channels: int = 3,
        out_indices: int | Sequence[int] = (3,),
        init_cfg: dict | Sequence[dict] | None = None,
    ) -> None:
        if widen_factor not in self.arch_settings:
            raise ValueError(f'widen_factor must be one of {list(self.arch_settings)}, but got {widen_factor}')
        super().__init__(self.arch_settings[widen_factor], out_indices, init_cfg)
        self.conv1 = nn.Conv2d(in_channels, self.stem_channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(self.stem_channels)
        previous = self.stem_channels
        for index in range(min(self.num_stages, len(self.num_units))):
            width = self.stage_channels[index]
            units: list[nn.Module] = [DownUnit(previous, width)]
            units += [BasicUnit(width) for _ in range(self.num_units[index] - 1)]
            self.add_stage(f'layer{index + 1}', nn.Sequential(*units))
            previous = width
        if self.num_stages > len(self.num_units):
            self.add_stage('conv2', nn.Sequential(*conv_bn(previous, self.out_channels, 1)))

    def forward_stem(self, x: Tensor) -> Tensor:
        """Map images (B, in_channels, H, W) to (B, 24, H, W)."""
        return F.relu(self.bn1(self.conv1(x)))
