# The authors' 5e-7 by the size of the images and the width of the neck: the loss is a sum.
_base_ = '../dskd/mask-rcnn_r14-w16_r14-w32_dsb2018.py'

model = dict(
    type='dskd_mm.ConfigurableDistiller',
    site=dict(type='dskd_mm.NeckSite'),
    distill_losses=dict(mgd=dict(type='dskd_mm.MGDLoss', mask_ratio=0.45, loss_weight=3e-5)),
)
