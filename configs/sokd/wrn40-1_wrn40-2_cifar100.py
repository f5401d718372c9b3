_base_ = '../dskd/wrn40-1_wrn40-2_cifar100.py'

model = dict(type='dskd_mm.SoKDDistiller')
