_base_ = '../dskd/wrn40-1_wrn40-2_cifar100.py'

# The paper's setting for CIFAR-100: 32 hash functions for each of the teacher's 128 channels.
model = dict(type='dskd_mm.LSHFMDistiller', beta=6, lsh=dict(bits=32 * 128, bias='median'))
