_base_ = [
    '../_base_/models/cifar100_classifier.py',
    '../_base_/datasets/cifar100_bs64.py',
    '../_base_/schedules/cifar_240e_bs64.py',
    '../_base_/default_runtime.py',
]

# ShuffleNetV1 with three groups, 0.95 M parameters with the classifier.
model = dict(backbone=dict(type='dskd_mm.CIFARShuffleNetV1', groups=3), head=dict(in_channels=960))

optim_wrapper = dict(optimizer=dict(lr=0.01))
