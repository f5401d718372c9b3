"""MobileNetV2 of half width, for 32x32 images."""

from collections.abc import Sequence

from torch import Tensor, nn

from dskd_mm.backbones.base import KAIMING_INIT, CIFARBackbone, conv_bn
from dskd_mm.registry import MODELS


class InvertedResidual(nn.Module):
    """Expanding 1x1, depthwise 3x3 and linear 1x1 convolutions, with a shortcut where shapes allow.

    Args:
        in_channels (int): Channels of the input.
        out_channels (int): Channels of the output.
        stride (int): Stride of the depthwise convolution.
        expand_ratio (int): Channels inside over ``in_channels``.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, expand_ratio: int) -> None:
        super().__init__()
        mid_channels = in_channels * expand_ratio
        self.conv = nn.Sequential(
            # The paper leaves the first one out at a ratio of 1; the tables' network has it.
            *conv_bn(in_channels, mid_channels, 1),
            *conv_bn(mid_channels, mid_channels, 3, stride=stride, groups=mid_channels),
            *conv_bn(mid_channels, out_channels, 1, act=False),
        )
        self.with_shortcut = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C_in, H, W) to (B, C_out, H / stride, W / stride)."""
        out = self.conv(x)
        return x + out if self.with_shortcut else out


@MODELS.register_module()
class CIFARMobileNetV2(CIFARBackbone):
    """MobileNetV2 as in the CIFAR-100 tables, where it has half width and no dropout.

    From `MobileNetV2: Inverted Residuals and Linear Bottlenecks
    <https://arxiv.org/abs/1801.04381>`_ with the differences of the network of `CRD
    <https://arxiv.org/abs/1910.10699>`_ (its ``mobile_half``, taken from Route Constrained
    Optimization): ReLU in place of ReLU6, stride 1 in the second group of blocks, an expanding
    convolution in the first block as well, and widths cut to whole numbers rather than rounded to
    multiples of 8.

    Args:
        widen_factor (float): Width multiplier. Defaults to 0.5.
        expand_ratio (int): Expansion of all blocks but the first (T in the tables). Defaults to 6.
        in_channels (int): Channels of the image. Defaults to 3.
        out_indices (int | Sequence[int]): Stages whose maps are returned: 0 to 6 are the groups of
            blocks (sizes 16, 16, 8, 4, 4, 2, 2 for 32x32 images; linear, not activated), 7 the
            last 1x1 convolution (2x2, activated, 1280 wide). Defaults to (7, ).
        init_cfg (dict | Sequence[dict], optional): Initialisation. Defaults to Kaiming normal by
            fan-out for convolutions, 1 for the norms' weights.
    """

    # width at widen_factor 1, blocks, stride of the first
    arch_settings = (
        (16, 1, 1),
        (24, 2, 1),
        (32, 3, 2),
        (64, 4, 2),
        (96, 3, 1),
        (160, 3, 2),
        (320, 1, 1),
    )

    def __init__(
        self,
        widen_factor: float = 0.5,
        expand_ratio: int = 6,
        in_channels: int = 3,
        out_indices: int | Sequence[int] = (7,),
        init_cfg: dict | Sequence[dict] | None = KAIMING_INIT,
    ) -> None:
        widths = [int(channels * widen_factor) for channels, _, _ in self.arch_settings]
        # The last convolution is widened but never narrowed.
        widths.append(int(1280 * max(widen_factor, 1.0)))
        super().__init__(widths, out_indices, init_cfg)
        previous = int(32 * widen_factor)
        self.conv1 = nn.Sequential(*conv_bn(in_channels, previous, 3, stride=2))
        for index in range(min(self.num_stages, len(self.arch_settings))):
            _, num_blocks, stride = self.arch_settings[index]
            ratio = 1 if index == 0 else expand_ratio
            blocks = [InvertedResidual(previous, widths[index], stride, ratio)]
            previous = widths[index]
            blocks += [InvertedResidual(previous, previous, 1, ratio) for _ in range(num_blocks - 1)]
            self.add_stage(f'layer{index + 1}', nn.Sequential(*blocks))
        if self.num_stages > len(self.arch_settings):
            self.add_stage('conv2', nn.Sequential(*conv_bn(previous, widths[-1], 1)))

    def forward_stem(self, x: Tensor) -> Tensor:
        """Map images (B, in_channels, H, W) to (B, 32 widen_factor, H / 2, W / 2)."""
        return self.conv1(x)
