_base_ = '../dskd/mobilenetv2_r50_cifar100.py'

model = dict(type='dskd_mm.VkDDistiller')
