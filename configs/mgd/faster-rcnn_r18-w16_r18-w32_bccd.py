# The authors' 5e-7 by the size of the images and the width of the neck: the loss is a sum.
_base_ = '../dskd/faster-rcnn_r18-w16_r18-w32_bccd.py'

model = dict(
    type='dskd_mm.ConfigurableDistiller',
    site=dict(type='dskd_mm.NeckSite'),
    distill_losses=dict(mgd=dict(type='dskd_mm.MGDLoss', mask_ratio=0.45, loss_weight=1e-4)),
)
