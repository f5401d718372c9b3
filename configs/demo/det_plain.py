"""Plain student of the detection demo: a quarter of the teacher's width, trained as the teacher is."""

_base_ = './det_teacher.py'

model = dict(
    backbone=dict(base_channels=8, stem_channels=8),
    neck=dict(in_channels=[16, 32], out_channels=32),
    bbox_head=dict(in_channels=32, feat_channels=32),
)
