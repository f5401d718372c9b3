_base_ = '../dskd/mobilenetv2_r50_cifar100.py'

# The paper's setting for CIFAR-100: 32 hash functions for each of the teacher's 2,048 channels.
model = dict(type='dskd_mm.LSHFMDistiller', beta=6, lsh=dict(bits=32 * 2048, bias='median'))
