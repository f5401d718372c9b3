_base_ = '../dskd/faster-rcnn_r101_r50.py'

model = dict(
    type='dskd_mm.ConfigurableDistiller',
    site=dict(type='dskd_mm.NeckSite'),
    distill_losses=dict(pkd=dict(type='dskd_mm.PKDLoss', loss_weight=6)),
)
