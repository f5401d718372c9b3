"""A student of 32x32 images that trains in minutes on one core: CIFAR ResNet-8 of width 8, half its teacher's."""

_base_ = './resnet14-w16_cifar100-subset.py'

model = dict(backbone=dict(depth=8, stem_channels=8, base_channels=8), head=dict(in_channels=32))
