_base_ = '../dskd/resnet8-w16_r14-w32_cifar100-subset.py'

model = dict(
    type='dskd_mm.ConfigurableDistiller',
    distill_losses=dict(fitnet=dict(type='dskd_mm.FitNetLoss', loss_weight=5)),
)
