_base_ = '../dskd/resnet8-w8_r14-w16_fashion-mnist.py'

model = dict(
    type='dskd_mm.ConfigurableDistiller',
    distill_losses=dict(dist=dict(type='dskd_mm.DISTLoss', beta=2, gamma=2, temperature=4)),
)
