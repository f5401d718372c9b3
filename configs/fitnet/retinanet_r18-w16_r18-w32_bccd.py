_base_ = '../dskd/retinanet_r18-w16_r18-w32_bccd.py'

model = dict(
    type='dskd_mm.ConfigurableDistiller',
    site=dict(type='dskd_mm.NeckSite'),
    distill_losses=dict(fitnet=dict(type='dskd_mm.FitNetLoss', loss_weight=5, align=dict(norm=None))),
)
