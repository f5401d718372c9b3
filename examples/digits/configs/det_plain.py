"""Plain student of the detection demo: a third of the teacher's width, trained as the teacher is."""

_base_ = './det_teacher.py'

model = dict(
    backbone=dict(base_channels=8, stem_channels=8),
    neck=dict(in_channels=[16, 32], out_channels=16),
    bbox_head=dict(in_channels=16, feat_channels=16),
)
