"""Wide residual networks of basic blocks for 32x32 images."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

from dskd_mm.backbones.base import KAIMING_INIT, CIFARBackbone
from dskd_mm.registry import MODELS


class PreActBlock(nn.Module):
    """Norm, ReLU and a 3x3 convolution, twice, with a shortcut; nothing follows the sum.

    Where the width changes, the shortcut is a 1x1 convolution of the *activated* input; elsewhere
    it is the input itself.

    Args:
        in_channels (int): Channels of the input.
        out_channels (int): Channels of the output.
        stride (int): Stride of the first convolution. Defaults to 1.
        drop_rate (float): Dropout between the convolutions. Defaults to 0.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1, drop_rate: float = 0.0) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(in_channels)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.drop = nn.Dropout(drop_rate) if drop_rate else None
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.shortcut = None
        if stride != 1 or in_channels != out_channels:
            self.shortcut = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C_in, H, W) to (B, C_out, H / stride, W / stride), before any activation."""
        activated = F.relu(self.bn1(x))
        identity = x if self.shortcut is None else self.shortcut(activated)
        out = F.relu(self.bn2(self.conv1(activated)))
        if self.drop is not None:
            out = self.drop(out)
        return self.conv2(out) + identity


@MODELS.register_module()
class CIFARWideResNet(CIFARBackbone):
    """WRN-d-k: pre-activation ResNet of three stages, k times as wide.

    From `Wide Residual Networks <https://arxiv.org/abs/1605.07146>`_. WRN-40-2 is
    ``depth=40, widen_factor=2``. The blocks end before their activation, so the last stage closes
    with the network's final norm and ReLU, and its map is the activated one that is pooled. The
    maps of the earlier stages are the bare sums of their last blocks.

    Args:
        depth (int): Number of weighted layers counted as in the paper, 6n + 4.
        widen_factor (int): Width multiplier k. Defaults to 1.
        drop_rate (float): Dropout inside the blocks. Defaults to 0.
        in_channels (int): Channels of the image. Defaults to 3.
        out_indices (int | Sequence[int]): Stages (0 to 2) whose maps are returned: (B, 16k, 32,
            32), (B, 32k, 16, 16), (B, 64k, 8, 8) for 32x32 images. Defaults to (2, ).
        init_cfg (dict | Sequence[dict], optional): Initialisation. Defaults to Kaiming normal by
            fan-out for convolutions, 1 for the norms' weights.
    """

    def __init__(
        self,
        depth: int,
        widen_factor: int = 1,
        drop_rate: float = 0.0,
        in_channels: int = 3,
        out_indices: int | Sequence[int] = (2,),
        init_cfg: dict | Sequence[dict] | None = KAIMING_INIT,
    ) -> None:
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f'depth must be 6n + 4 (10, 16, 22, 28, 40), but got {depth}')
        widths = [16 * widen_factor * 2**index for index in range(3)]
        super().__init__(widths, out_indices, init_cfg)
        self.depth = depth
        self.widen_factor = widen_factor
        self.conv1 = nn.Conv2d(in_channels, 16, 3, padding=1, bias=False)
        num_blocks = (depth - 4) // 6
        previous = 16
        for index in range(self.num_stages):
            width = widths[index]
            stage = nn.Sequential(
                PreActBlock(previous, width, 1 if index == 0 else 2, drop_rate),
                *(PreActBlock(width, width, drop_rate=drop_rate) for _ in range(num_blocks - 1)),
            )
            if index == len(widths) - 1:
                stage.add_module('bn', nn.BatchNorm2d(width))
                stage.add_module('relu', nn.ReLU())
            self.add_stage(f'layer{index + 1}', stage)
            previous = width

    def forward_stem(self, x: Tensor) -> Tensor:
        """Map images (B, in_channels, H, W) to (B, 16, H, W), without norm or activation."""
        return self.conv1(x)
