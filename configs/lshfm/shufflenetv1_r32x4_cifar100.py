_base_ = '../dskd/shufflenetv1_r32x4_cifar100.py'

# The paper's setting for CIFAR-100: 32 hash functions for each of the teacher's 256 channels.
model = dict(type='dskd_mm.LSHFMDistiller', beta=6, lsh=dict(bits=32 * 256, bias='median'))
