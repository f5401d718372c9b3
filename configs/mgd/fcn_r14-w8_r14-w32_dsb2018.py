# The end of the backbone, as the authors do. The weight is their 2e-5 by the size of the maps,
# 128x32x32 in place of 2048x64x64: the loss is a sum.
_base_ = '../dskd/fcn_r14-w8_r14-w32_dsb2018.py'

model = dict(
    type='dskd_mm.ConfigurableDistiller',
    layers=dict(
        stage3=dict(student=dict(path='backbone.layer3', channels=32), teacher=dict(path='backbone.layer3', channels=128)),
    ),
    distill_losses=dict(mgd=dict(type='dskd_mm.MGDLoss', on='stage3', mask_ratio=0.75, loss_weight=1e-3)),
)
