_base_ = '../dskd/mask-rcnn_r14-w16_r14-w32_dsb2018.py'

model = dict(
    type='dskd_mm.ConfigurableDistiller',
    distill_losses=dict(kd=dict(type='dskd_mm.KDLoss', temperature=1), box=dict(type='dskd_mm.BoxLoss')),
)
