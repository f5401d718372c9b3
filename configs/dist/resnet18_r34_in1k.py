_base_ = '../dskd/resnet18_r34_in1k.py'

model = dict(
    type='dskd_mm.ConfigurableDistiller',
    distill_losses=dict(dist=dict(type='dskd_mm.DISTLoss', beta=2, gamma=2)),
)
