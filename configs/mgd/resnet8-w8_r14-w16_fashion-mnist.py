# The authors' 7e-5 for maps of 512x7x7 by the size of these, 64x7x7: the loss is a sum.
_base_ = '../dskd/resnet8-w8_r14-w16_fashion-mnist.py'

model = dict(
    type='dskd_mm.ConfigurableDistiller',
    distill_losses=dict(mgd=dict(type='dskd_mm.MGDLoss', mask='channel', mask_ratio=0.15, loss_weight=6e-4)),
)
