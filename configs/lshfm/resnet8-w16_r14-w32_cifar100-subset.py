_base_ = '../dskd/resnet8-w16_r14-w32_cifar100-subset.py'

# The paper's setting for CIFAR-100: 32 hash functions for each of the teacher's 128 channels.
model = dict(type='dskd_mm.LSHFMDistiller', beta=6, lsh=dict(bits=32 * 128, bias='median'))
