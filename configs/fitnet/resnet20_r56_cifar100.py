_base_ = '../dskd/resnet20_r56_cifar100.py'

model = dict(
    type='dskd_mm.ConfigurableDistiller',
    distill_losses=dict(fitnet=dict(type='dskd_mm.FitNetLoss', loss_weight=5)),
)
