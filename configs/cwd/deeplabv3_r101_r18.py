_base_ = '../dskd/deeplabv3_r101_r18.py'

model = dict(
    type='dskd_mm.ConfigurableDistiller',
    distill_losses=dict(cwd=dict(type='dskd_mm.CWDLoss', on='logits', temperature=4, loss_weight=3)),
)
