_base_ = '../dskd/deeplabv3_r101_r18.py'

model = dict(
    type='dskd_mm.ConfigurableDistiller',
    distill_losses=dict(dist=dict(type='dskd_mm.DISTLoss')),
)
