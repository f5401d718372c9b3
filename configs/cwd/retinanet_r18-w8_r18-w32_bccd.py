_base_ = '../dskd/retinanet_r18-w8_r18-w32_bccd.py'

model = dict(
    type='dskd_mm.ConfigurableDistiller',
    site=dict(type='dskd_mm.NeckSite'),
    distill_losses=dict(cwd=dict(type='dskd_mm.CWDLoss', loss_weight=10)),
)
