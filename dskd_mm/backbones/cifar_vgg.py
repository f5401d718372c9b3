"""VGG with batch norm and a single linear layer, for 32x32 images."""

from collections.abc import Sequence

from torch import nn

from dskd_mm.backbones.base import KAIMING_INIT, CIFARBackbone, conv_bn
from dskd_mm.registry import MODELS


@MODELS.register_module()
class CIFARVGG(CIFARBackbone):
    """VGG-8/11/13/16/19 with batch norm; the hidden linear layers are left out.

    The 3x3 convolutions of `Very Deep Convolutional Networks for Large-Scale Image Recognition
    <https://arxiv.org/abs/1409.1556>`_ (with their biases) as the CIFAR-100 tables of `CRD
    <https://arxiv.org/abs/1910.10699>`_ use them: VGG-8 has one convolution a stage, max-pooling
    follows the first three stages only, so that 4x4 positions are averaged for the classifier.
    The pooling belongs to the stage that comes after it: a returned map is not pooled yet.

    Args:
        depth (int): 8, 11, 13, 16 or 19.
        num_pools (int): Number of stages, from the first, that a 2x2 max-pooling follows. The
            tables use 3 at 32x32 and 4 at 64x64 pixels. Defaults to 3.
        in_channels (int): Channels of the image. Defaults to 3.
        out_indices (int | Sequence[int]): Stages (0 to 4) whose maps are returned, of widths 64,
            128, 256, 512, 512 and sizes 32, 16, 8, 4, 4 for 32x32 images. Defaults to (4, ).
        init_cfg (dict | Sequence[dict], optional): Initialisation. Defaults to Kaiming normal by
            fan-out for convolutions, 1 for the norms' weights.
    """

    num_convs = {
        8: (1, 1, 1, 1, 1),
        11: (1, 1, 2, 2, 2),
        13: (2, 2, 2, 2, 2),
        16: (2, 2, 3, 3, 3),
        19: (2, 2, 4, 4, 4),
    }

    def __init__(
        self,
        depth: int,
        num_pools: int = 3,
        in_channels: int = 3,
        out_indices: int | Sequence[int] = (4,),
        init_cfg: dict | Sequence[dict] | None = KAIMING_INIT,
    ) -> None:
        if depth not in self.num_convs:
            raise ValueError(f'depth must be one of {list(self.num_convs)}, but got {depth}')
        if not 0 <= num_pools <= 4:
            raise ValueError(f'num_pools must lie in [0, 4], but got {num_pools}')
        super().__init__((64, 128, 256, 512, 512), out_indices, init_cfg)
        self.depth = depth
        previous = in_channels
        for index in range(self.num_stages):
            layers: list[nn.Module] = [nn.MaxPool2d(2)] if 0 < index <= num_pools else []
            for _ in range(self.num_convs[depth][index]):
                layers += conv_bn(previous, self.stage_channels[index], 3, bias=True)
                previous = self.stage_channels[index]
            self.add_stage(f'layer{index + 1}', nn.Sequential(*layers))
