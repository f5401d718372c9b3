# The authors' 2e-5 by the size of these maps, 64x32x32 in place of 512x64x128: the loss is a sum.
_base_ = '../dskd/fcn_r14-w8_r14-w32_dsb2018.py'

model = dict(
    type='dskd_mm.ConfigurableDistiller',
    distill_losses=dict(mgd=dict(type='dskd_mm.MGDLoss', mask_ratio=0.75, loss_weight=1e-3)),
)
