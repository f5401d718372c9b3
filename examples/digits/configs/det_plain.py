"""Plain student of the detection demo: a third of the teacher's width, in half of its steps."""

_base_ = './det_teacher.py'

model = dict(
    backbone=dict(base_channels=8, stem_channels=8),
    neck=dict(in_channels=[16, 32], out_channels=16),
    bbox_head=dict(in_channels=16, feat_channels=16),
)

train_dataloader = dict(batch_size=16)
optim_wrapper = dict(optimizer=dict(lr=3e-3))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=40),
    dict(type='CosineAnnealingLR', T_max=8, eta_min=0, by_epoch=True, begin=0, end=8, convert_to_iter_based=True),
]
