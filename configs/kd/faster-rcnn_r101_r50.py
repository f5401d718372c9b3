_base_ = '../dskd/faster-rcnn_r101_r50.py'

model = dict(
    type='dskd_mm.ConfigurableDistiller',
    distill_losses=dict(kd=dict(type='dskd_mm.KDLoss', temperature=1), box=dict(type='dskd_mm.BoxLoss')),
)
