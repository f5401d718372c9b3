_base_ = '../dskd/retinanet_r101_r50.py'

model = dict(
    type='dskd_mm.ConfigurableDistiller',
    site=dict(type='dskd_mm.NeckSite'),
    distill_losses=dict(cwd=dict(type='dskd_mm.CWDLoss', loss_weight=10)),
)
