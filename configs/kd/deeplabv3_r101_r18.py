_base_ = '../dskd/deeplabv3_r101_r18.py'

model = dict(
    type='dskd_mm.ConfigurableDistiller',
    distill_losses=dict(kd=dict(type='dskd_mm.KDLoss', temperature=1)),
)
