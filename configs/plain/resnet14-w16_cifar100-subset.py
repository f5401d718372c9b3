_base_ = './resnet14-w32_cifar100-subset.py'

model = dict(backbone=dict(stem_channels=16, base_channels=16), head=dict(in_channels=64))
