_base_ = '../dskd/pspnet_r14-w8_r14-w32_dsb2018.py'

model = dict(
    type='dskd_mm.ConfigurableDistiller',
    distill_losses=dict(cwd=dict(type='dskd_mm.CWDLoss', on='logits', temperature=4, loss_weight=3)),
)
