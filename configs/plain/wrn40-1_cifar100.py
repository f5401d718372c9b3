_base_ = [
    '../_base_/models/cifar100_classifier.py',
    '../_base_/datasets/cifar100_bs64.py',
    '../_base_/schedules/cifar_240e_bs64.py',
    '../_base_/default_runtime.py',
]

# WRN-40-1, 0.57 M parameters with the classifier.
model = dict(backbone=dict(type='dskd_mm.CIFARWideResNet', depth=40, widen_factor=1), head=dict(in_channels=64))
