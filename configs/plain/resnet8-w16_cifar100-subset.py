"""The CPU-sized student: CIFAR ResNet-8 of width 16, half the teacher's."""

_base_ = [
    '../_base_/models/resnet14-w32_32px.py',
    '../_base_/datasets/cifar100-subset_bs128.py',
    '../_base_/schedules/cosine_20e_bs128.py',
    '../_base_/default_runtime.py',
]

model = dict(backbone=dict(depth=8, stem_channels=16, base_channels=16), head=dict(in_channels=64))
