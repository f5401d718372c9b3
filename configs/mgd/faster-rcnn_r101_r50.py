_base_ = '../dskd/faster-rcnn_r101_r50.py'

model = dict(
    type='dskd_mm.ConfigurableDistiller',
    site=dict(type='dskd_mm.NeckSite'),
    distill_losses=dict(mgd=dict(type='dskd_mm.MGDLoss', mask_ratio=0.45, loss_weight=5e-7)),
)
