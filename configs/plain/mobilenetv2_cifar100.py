_base_ = [
    '../_base_/models/cifar100_classifier.py',
    '../_base_/datasets/cifar100_bs64.py',
    '../_base_/schedules/cifar_240e_bs64.py',
    '../_base_/default_runtime.py',
]

# MobileNetV2 of half width, 0.81 M parameters with the classifier.
model = dict(backbone=dict(type='dskd_mm.CIFARMobileNetV2', widen_factor=0.5), head=dict(in_channels=1280))

optim_wrapper = dict(optimizer=dict(lr=0.01))
