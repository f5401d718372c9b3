_base_ = '../dskd/resnet8-w8_r14-w16_fashion-mnist.py'

model = dict(
    type='dskd_mm.ConfigurableDistiller',
    distill_losses=dict(fitnet=dict(type='dskd_mm.FitNetLoss', loss_weight=5)),
)
