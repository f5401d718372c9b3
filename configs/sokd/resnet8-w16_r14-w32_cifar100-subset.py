_base_ = '../dskd/resnet8-w16_r14-w32_cifar100-subset.py'

model = dict(type='dskd_mm.SoKDDistiller')
