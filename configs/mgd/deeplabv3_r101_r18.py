_base_ = '../dskd/deeplabv3_r101_r18.py'

model = dict(
    type='dskd_mm.ConfigurableDistiller',
    distill_losses=dict(mgd=dict(type='dskd_mm.MGDLoss', mask_ratio=0.75, loss_weight=2e-5)),
)
