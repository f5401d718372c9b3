"""ResNet-50/101/152 with a stem for 32x32 images."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from dskd_mm.backbones.base import KAIMING_INIT, CIFARBackbone, conv_bn
from dskd_mm.registry import MODELS


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions with a shortcut; the ReLU follows the sum.

    The stride sits on the 3x3 convolution.

    Args:
        in_channels (int): Channels of the input.
        mid_channels (int): Channels inside; the output has ``expansion`` times as many.
        stride (int): Stride. Defaults to 1.
    """

    expansion = 4

    def __init__(self, in_channels: int, mid_channels: int, stride: int = 1) -> None:
        super().__init__()
        out_channels = mid_channels * self.expansion
        self.conv1 = nn.Conv2d(in_channels, mid_channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(mid_channels)
        self.conv2 = nn.Conv2d(mid_channels, mid_channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(mid_channels)
        self.conv3 = nn.Conv2d(mid_channels, out_channels, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out_channels)
        self.downsample = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(*conv_bn(in_channels, out_channels, 1, stride=stride, act=False))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C_in, H, W) to (B, 4 C_mid, H / stride, W / stride)."""
        identity = x if self.downsample is None else self.downsample(x)
        out = F.relu(self.bn1(self.conv1(x)))
        out = F.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return F.relu(out + identity)


@MODELS.register_module()
class CIFARBottleneckResNet(CIFARBackbone):
    """The ImageNet ResNets of bottlenecks with a 3x3 stem of stride 1 and no pooling.

    The ``ResNet50`` of `CRD <https://arxiv.org/abs/1910.10699>`_'s CIFAR-100 tables. Four stages as
    in `Deep Residual Learning for Image Recognition <https://arxiv.org/abs/1512.03385>`_; only the
    stem is made for 32x32 images.

    Args:
        depth (int): 50, 101 or 152.
        base_channels (int): Width of the stem and inside the first stage's bottlenecks, doubled
            at each further stage. Defaults to 64.
        in_channels (int): Channels of the image. Defaults to 3.
        out_indices (int | Sequence[int]): Stages (0 to 3) whose maps are returned, of widths 4, 8,
            16 and 32 times ``base_channels`` and sizes 32, 16, 8 and 4 for 32x32 images.
            Defaults to (3, ).
        init_cfg (dict | Sequence[dict], optional): Initialisation. Defaults to Kaiming normal by
            fan-out for convolutions, 1 for the norms' weights.
    """

    num_blocks = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}

    def __init__(
        self,
        depth: int = 50,
        base_channels: int = 64,
        in_channels: int = 3,
        out_indices: int | Sequence[int] = (3,),
        init_cfg: dict | Sequence[dict] | None = KAIMING_INIT,
    ) -> None:
        if depth not in self.num_blocks:
            raise ValueError(f'depth must be one of {list(self.num_blocks)}, but got {depth}')
        mids = [base_channels * 2**index for index in range(4)]
        super().__init__([mid * Bottleneck.expansion for mid in mids], out_indices, init_cfg)
        self.depth = depth
        self.conv1 = nn.Conv2d(in_channels, base_channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(base_channels)
        previous = base_channels
        for index in range(self.num_stages):
            width = self.stage_channels[index]
            blocks = [Bottleneck(previous, mids[index], stride=1 if index == 0 else 2)]
            blocks += [Bottleneck(width, mids[index]) for _ in range(self.num_blocks[depth][index] - 1)]
            self.add_stage(f'layer{index + 1}', nn.Sequential(*blocks))
            previous = width

    def forward_stem(self, x: Tensor) -> Tensor:
        """Map images (B, in_channels, H, W) to (B, base_channels, H, W)."""
        return F.relu(self.bn1(self.conv1(x)))
