_base_ = '../dskd/faster-rcnn_r101_r50.py'

model = dict(
    type='dskd_mm.ConfigurableDistiller',
    distill_losses=dict(dkd=dict(type='dskd_mm.DKDLoss', beta=0.25, temperature=1)),
)
