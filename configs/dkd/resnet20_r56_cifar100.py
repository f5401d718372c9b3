# The authors' weight for this pair, and their warm-up: 20 epochs of 782 iterations.
_base_ = '../dskd/resnet20_r56_cifar100.py'

model = dict(
    type='dskd_mm.ConfigurableDistiller',
    warmup=15640,
    distill_losses=dict(dkd=dict(type='dskd_mm.DKDLoss', beta=2)),
)
