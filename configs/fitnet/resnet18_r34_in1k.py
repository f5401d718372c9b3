_base_ = '../dskd/resnet18_r34_in1k.py'

model = dict(
    type='dskd_mm.ConfigurableDistiller',
    distill_losses=dict(fitnet=dict(type='dskd_mm.FitNetLoss', loss_weight=5)),
)
