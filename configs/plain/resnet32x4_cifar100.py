_base_ = [
    '../_base_/models/cifar100_classifier.py',
    '../_base_/datasets/cifar100_bs64.py',
    '../_base_/schedules/cifar_240e_bs64.py',
    '../_base_/default_runtime.py',
]

# ResNet-32, four times as wide, 7.43 M parameters with the classifier.
model = dict(
    backbone=dict(type='dskd_mm.CIFARResNet', depth=32, stem_channels=32, base_channels=64), head=dict(in_channels=256)
)
