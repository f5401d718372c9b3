# The authors' 7e-5 for maps of 512x7x7 by the size of these, 128x8x8: the loss is a sum.
_base_ = '../dskd/resnet8-w16_r14-w32_cifar100-subset.py'

model = dict(
    type='dskd_mm.ConfigurableDistiller',
    distill_losses=dict(mgd=dict(type='dskd_mm.MGDLoss', mask='channel', mask_ratio=0.15, loss_weight=2e-4)),
)
