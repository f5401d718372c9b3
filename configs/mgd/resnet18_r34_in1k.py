_base_ = '../dskd/resnet18_r34_in1k.py'

model = dict(
    type='dskd_mm.ConfigurableDistiller',
    distill_losses=dict(mgd=dict(type='dskd_mm.MGDLoss', mask='channel', mask_ratio=0.15, loss_weight=7e-5)),
)
