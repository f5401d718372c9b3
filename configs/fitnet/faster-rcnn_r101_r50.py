_base_ = '../dskd/faster-rcnn_r101_r50.py'

model = dict(
    type='dskd_mm.ConfigurableDistiller',
    site=dict(type='dskd_mm.NeckSite'),
    distill_losses=dict(fitnet=dict(type='dskd_mm.FitNetLoss', loss_weight=5, align=dict(norm=None))),
)
