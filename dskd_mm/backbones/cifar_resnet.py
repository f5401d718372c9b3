"""ResNet for 32x32 images with three stages of basic blocks."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from dskd_mm.backbones.base import KAIMING_INIT, CIFARBackbone, conv_bn
from dskd_mm.registry import MODELS


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut; the ReLU follows the sum.

    Args:
        in_channels (int): Channels of the input.
        out_channels (int): Channels of the output.
        stride (int): Stride of the first convolution. Defaults to 1.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.downsample = None
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(*conv_bn(in_channels, out_channels, 1, stride=stride, act=False))

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C_in, H, W) to (B, C_out, H / stride, W / stride)."""
        identity = x if self.downsample is None else self.downsample(x)
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return F.relu(out + identity)


@MODELS.register_module()
class CIFARResNet(CIFARBackbone):
    """ResNet-8/14/20/32/44/56/110 and their four times wider kin for 32x32 images.

    The network of section 4.2 of `Deep Residual Learning for Image Recognition
    <https://arxiv.org/abs/1512.03385>`_: a 3x3 stem without pooling and three stages of
    (depth - 2) / 6 basic blocks. The shortcuts that change shape are 1x1 convolutions (option B of
    the paper), as in the CIFAR-100 tables of `CRD <https://arxiv.org/abs/1910.10699>`_ and its
    followers.

    The tables' names are written as follows: ``resnet20`` is ``depth=20``; ``resnet8x4`` is
    ``depth=8, stem_channels=32, base_channels=64``; ``resnet32x4`` the same with ``depth=32``.

    Args:
        depth (int): Number of weighted layers, 6n + 2.
        stem_channels (int): Width of the stem. Defaults to 16.
        base_channels (int): Width of the first stage, doubled at each further one. Defaults
            to 16.
        in_channels (int): Channels of the image. Defaults to 3.
        out_indices (int | Sequence[int]): Stages (0 to 2) whose maps are returned: (B, base, 32,
            32), (B, 2 base, 16, 16), (B, 4 base, 8, 8) for 32x32 images. Defaults to (2, ).
        init_cfg (dict | Sequence[dict], optional): Initialisation. Defaults to Kaiming normal by
            fan-out for convolutions, 1 for the norms' weights.
    """

    def __init__(
        self,
        depth: int,
        stem_channels: int = 16,
        base_channels: int = 16,
        in_channels: int = 3,
        out_indices: int | Sequence[int] = (2,),
        init_cfg: dict | Sequence[dict] | None = KAIMING_INIT,
    ) -> None:
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f'depth must be 6n + 2 (8, 14, 20, 32, 44, 56, 110), but got {depth}')
        widths = [base_channels * 2**index for index in range(3)]
        super().__init__(widths, out_indices, init_cfg)
        self.depth = depth
        self.conv1 = nn.Conv2d(in_channels, stem_channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(stem_channels)
        num_blocks = (depth - 2) // 6
        previous = stem_channels
        for index in range(self.num_stages):
            width = widths[index]
            blocks = [BasicBlock(previous, width, stride=1 if index == 0 else 2)]
            blocks += [BasicBlock(width, width) for _ in range(num_blocks - 1)]
            self.add_stage(f'layer{index + 1}', nn.Sequential(*blocks))
            previous = width

    def forward_stem(self, x: Tensor) -> Tensor:
        """Map images (B, in_channels, H, W) to (B, stem_channels, H, W)."""
        return F.relu(self.bn1(self.conv1(x)))
