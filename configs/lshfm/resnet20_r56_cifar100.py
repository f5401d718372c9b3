_base_ = '../dskd/resnet20_r56_cifar100.py'

# The paper's setting for CIFAR-100: 32 hash functions for each of the teacher's 64 channels.
model = dict(type='dskd_mm.LSHFMDistiller', beta=6, lsh=dict(bits=32 * 64, bias='median'))
