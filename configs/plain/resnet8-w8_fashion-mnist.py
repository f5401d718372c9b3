"""The CPU-sized student for 28x28 grey images: CIFAR ResNet-8 of width 8, half the teacher's."""

_base_ = [
    '../_base_/models/resnet14-w16_28px.py',
    '../_base_/datasets/fashion-mnist_bs128.py',
    '../_base_/schedules/cosine_20e_bs128.py',
    '../_base_/default_runtime.py',
]

model = dict(backbone=dict(depth=8, stem_channels=8, base_channels=8), head=dict(in_channels=32))
