_base_ = '../dskd/resnet8-w16_r14-w32_cifar100-subset.py'

model = dict(
    type='dskd_mm.ConfigurableDistiller',
    warmup=200,
    distill_losses=dict(dkd=dict(type='dskd_mm.DKDLoss', beta=8, temperature=4)),
)
