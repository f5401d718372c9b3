"""The CIFAR networks of the distillation literature's tables, which no host library has."""

from dskd_mm.backbones.cifar_bottleneck_resnet import CIFARBottleneckResNet
from dskd_mm.backbones.cifar_mobilenet_v2 import CIFARMobileNetV2
from dskd_mm.backbones.cifar_resnet import CIFARResNet
from dskd_mm.backbones.cifar_shufflenet_v1 import CIFARShuffleNetV1
from dskd_mm.backbones.cifar_shufflenet_v2 import CIFARShuffleNetV2
from dskd_mm.backbones.cifar_vgg import CIFARVGG
from dskd_mm.backbones.cifar_wide_resnet import CIFARWideResNet

__all__ = [
    'CIFARVGG',
    'CIFARBottleneckResNet',
    'CIFARMobileNetV2',
    'CIFARResNet',
    'CIFARShuffleNetV1',
    'CIFARShuffleNetV2',
    'CIFARWideResNet',
]
