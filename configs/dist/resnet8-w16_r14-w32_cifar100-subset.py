_base_ = '../dskd/resnet8-w16_r14-w32_cifar100-subset.py'

model = dict(
    type='dskd_mm.ConfigurableDistiller',
    distill_losses=dict(dist=dict(type='dskd_mm.DISTLoss', beta=2, gamma=2, temperature=4)),
)
