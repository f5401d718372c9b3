_base_ = '../dskd/pspnet_r14-w8_r14-w32_dsb2018.py'

model = dict(
    type='dskd_mm.ConfigurableDistiller',
    distill_losses=dict(kd=dict(type='dskd_mm.KDLoss', temperature=1)),
)
