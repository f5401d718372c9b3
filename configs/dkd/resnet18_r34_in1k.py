_base_ = '../dskd/resnet18_r34_in1k.py'

model = dict(
    type='dskd_mm.ConfigurableDistiller',
    distill_losses=dict(dkd=dict(type='dskd_mm.DKDLoss', beta=0.5, temperature=1)),
)
