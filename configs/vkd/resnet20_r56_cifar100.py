_base_ = '../dskd/resnet20_r56_cifar100.py'

model = dict(type='dskd_mm.VkDDistiller')
