# The authors' 2e-5 by the size of the images and the width of the neck: the loss is a sum.
_base_ = '../dskd/retinanet_r18-w8_r18-w32_bccd.py'

model = dict(
    type='dskd_mm.ConfigurableDistiller',
    site=dict(type='dskd_mm.NeckSite'),
    distill_losses=dict(mgd=dict(type='dskd_mm.MGDLoss', mask_ratio=0.65, loss_weight=1e-3)),
)
