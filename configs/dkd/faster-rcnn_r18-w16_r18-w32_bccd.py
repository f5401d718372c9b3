_base_ = '../dskd/faster-rcnn_r18-w16_r18-w32_bccd.py'

model = dict(
    type='dskd_mm.ConfigurableDistiller',
    distill_losses=dict(dkd=dict(type='dskd_mm.DKDLoss', beta=0.25, temperature=1)),
)
