_base_ = [
    '../_base_/models/cifar100_classifier.py',
    '../_base_/datasets/cifar100_bs64.py',
    '../_base_/schedules/cifar_240e_bs64.py',
    '../_base_/default_runtime.py',
]

# ResNet-20, 0.28 M parameters with the classifier.
model = dict(backbone=dict(type='dskd_mm.CIFARResNet', depth=20), head=dict(in_channels=64))
