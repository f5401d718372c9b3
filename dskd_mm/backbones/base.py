"""What the CIFAR backbones share: stages in a row, and which of their maps are returned."""

from collections.abc import Sequence

from mmengine.model import BaseModule
from torch import Tensor, nn

KAIMING_INIT = (
    dict(type='Kaiming', layer='Conv2d', mode='fan_out', nonlinearity='relu'),
    dict(type='Constant', layer='_BatchNorm', val=1),
)
"""Normal weights with variance 2 / (k * k * out_channels), as in ResNet, WRN, VGG and MobileNetV2.

The norms' weights start at 1; the biases of convolutions and norms at 0.
"""


class CIFARBackbone(BaseModule):
    """Base of the CIFAR networks: a stem, then stages that run one after the other.

    A subclass adds its stages with :meth:`add_stage` and may override :meth:`forward_stem`. The
    last stage ends in the map that global average pooling sees, so that the input of the linear
    classifier is the mean over the positions of that map, with nothing in between.

    Nothing works in place: any submodule's input or output can be captured during training
    without being overwritten by the layer that follows.

    Args:
        stage_channels (Sequence[int]): Width of each stage's output.
        out_indices (int | Sequence[int]): Stages whose maps are returned, in rising order. A
            negative index counts from the last stage.
        init_cfg (dict | Sequence[dict], optional): Initialisation of the weights. None leaves
            PyTorch's own. Defaults to None.

    Attributes:
        stage_channels (tuple[int]): Width of each stage's output, built or not.
        out_channels (int): Width of the last returned map: ``in_channels`` of the head.
        num_stages (int): Number of stages built. Those after the last returned one are left
            out, because parameters without a gradient stop distributed training.
    """

    def __init__(
        self,
        stage_channels: Sequence[int],
        out_indices: int | Sequence[int],
        init_cfg: dict | Sequence[dict] | None = None,
    ) -> None:
        if isinstance(init_cfg, tuple):
            # mmengine initialises from lists only, and writes into them: each network its own.
            init_cfg = [dict(cfg) for cfg in init_cfg]
        super().__init__(init_cfg)
        self.stage_channels = tuple(stage_channels)
        total = len(self.stage_channels)
        indices = [out_indices] if isinstance(out_indices, int) else list(out_indices)
        for index in indices:
            if not -total <= index < total:
                raise ValueError(
                    f'out_indices must lie in [-{total}, {total - 1}] for the {total} stages of '
                    f'{type(self).__name__}, but got {out_indices}'
                )
        self.out_indices = tuple(index % total for index in indices)
        if not indices or list(self.out_indices) != sorted(set(self.out_indices)):
            raise ValueError(f'out_indices must name at least one stage, in rising order and each once, but got {out_indices}')
        self.num_stages = self.out_indices[-1] + 1
        self.out_channels = self.stage_channels[self.out_indices[-1]]
        self._stage_names: list[str] = []

    def add_stage(self, name: str, stage: nn.Module) -> None:
        """Append a stage.

        Args:
            name (str): Attribute name of the stage, which is also its path for a feature tap.
            stage (nn.Module): Maps (B, C_i, H_i, W_i) to (B, C_{i+1}, H_{i+1}, W_{i+1}).
        """
        self.add_module(name, stage)
        self._stage_names.append(name)

    def forward_stem(self, x: Tensor) -> Tensor:
        """Run what comes before the first stage: nothing, unless overridden.

        Args:
            x (Tensor): Images (B, in_channels, H, W).

        Returns:
            Tensor: Input of the first stage.
        """
        return x

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Compute the maps of the stages in ``out_indices``.

        Args:
            x (Tensor): Images (B, in_channels, H, W).

        Returns:
            tuple[Tensor]: One map (B, C, H', W') per index. The one of the network's last stage
            is what global average pooling sees, after its activation.
        """
        x = self.forward_stem(x)
        outs = []
        for index, name in enumerate(self._stage_names):
            x = getattr(self, name)(x)
            if index in self.out_indices:
                outs.append(x)
        return tuple(outs)


def conv_bn(
    in_channels: int,
    out_channels: int,
    kernel_size: int,
    stride: int = 1,
    groups: int = 1,
    act: bool = True,
    bias: bool = False,
) -> list[nn.Module]:
    """Make a convolution that keeps the size (stride aside), a batch norm and a ReLU.

    Args:
        in_channels (int): Channels of the input.
        out_channels (int): Channels of the output.
        kernel_size (int): Odd kernel size.
        stride (int): Stride. Defaults to 1.
        groups (int): Groups of the convolution. Defaults to 1.
        act (bool): Whether a ReLU ends it. Defaults to True.
        bias (bool): Whether the convolution has a bias. Defaults to False.

    Returns:
        list[nn.Module]: The layers in order, to be unpacked into an ``nn.Sequential``.
    """
    layers: list[nn.Module] = [
        nn.Conv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=kernel_size // 2,
            groups=groups,
            bias=bias,
        ),
        nn.BatchNorm2d(out_channels),
    ]
    if act:
        layers.append(nn.ReLU())
    return layers


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """Interleave the channels of ``groups`` groups, so that the next group convolution mixes them.

    Args:
        x (Tensor): Map (B, C, H, W), C divisible by ``groups``.
        groups (int): Number of groups.

    Returns:
        Tensor: Map of the same shape: channel ``i * groups + g`` is channel ``g * C / groups + i``
        of the input.
    """
    return x.unflatten(1, (groups, -1)).transpose(1, 2).flatten(1, 2)
