_base_ = '../dskd/resnet8x4_r32x4_cifar100.py'

model = dict(type='dskd_mm.SoKDDistiller')
