_base_ = '../dskd/shufflenetv1_r32x4_cifar100.py'

model = dict(type='dskd_mm.DiffKDDistiller')
