_base_ = '../dskd/resnet8-w8_r14-w16_fashion-mnist.py'

model = dict(
    type='dskd_mm.ConfigurableDistiller',
    warmup=200,
    distill_losses=dict(dkd=dict(type='dskd_mm.DKDLoss', beta=8, temperature=4)),
)
