_base_ = '../dskd/shufflenetv2_r32x4_cifar100.py'

model = dict(type='dskd_mm.DiffKDDistiller')
