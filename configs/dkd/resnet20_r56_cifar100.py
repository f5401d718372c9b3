# The authors' weight for this pair.
_base_ = '../dskd/resnet20_r56_cifar100.py'

model = dict(
    type='dskd_mm.ConfigurableDistiller',
    distill_losses=dict(dkd=dict(type='dskd_mm.DKDLoss', beta=2)),
)
