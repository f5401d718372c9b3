_base_ = [
    '../_base_/models/cifar100_classifier.py',
    '../_base_/datasets/cifar100_bs64.py',
    '../_base_/schedules/cifar_240e_bs64.py',
    '../_base_/default_runtime.py',
]

# ResNet-50 with a 3x3 stem, 23.71 M parameters with the classifier.
model = dict(backbone=dict(type='dskd_mm.CIFARBottleneckResNet', depth=50), head=dict(in_channels=2048))
