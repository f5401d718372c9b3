_base_ = '../dskd/resnet8-w8_r14-w16_fashion-mnist.py'

model = dict(type='dskd_mm.VkDDistiller')
