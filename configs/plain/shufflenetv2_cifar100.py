_base_ = [
    '../_base_/models/cifar100_classifier.py',
    '../_base_/datasets/cifar100_bs64.py',
    '../_base_/schedules/cifar_240e_bs64.py',
    '../_base_/default_runtime.py',
]

# ShuffleNetV2 of width 1, 1.36 M parameters with the classifier.
model = dict(backbone=dict(type='dskd_mm.CIFARShuffleNetV2', widen_factor=1.0), head=dict(in_channels=1024))

optim_wrapper = dict(optimizer=dict(lr=0.01))
