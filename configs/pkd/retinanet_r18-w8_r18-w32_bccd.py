_base_ = '../dskd/retinanet_r18-w8_r18-w32_bccd.py'

model = dict(
    type='dskd_mm.ConfigurableDistiller',
    site=dict(type='dskd_mm.NeckSite'),
    distill_losses=dict(pkd=dict(type='dskd_mm.PKDLoss', loss_weight=10)),
)
