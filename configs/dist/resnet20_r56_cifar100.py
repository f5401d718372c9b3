_base_ = '../dskd/resnet20_r56_cifar100.py'

model = dict(
    type='dskd_mm.ConfigurableDistiller',
    distill_losses=dict(dist=dict(type='dskd_mm.DISTLoss', beta=2, gamma=2, temperature=4)),
)
