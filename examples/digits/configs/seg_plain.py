"""Plain student of the segmentation demo: half of the teacher's width, trained as the teacher is."""

_base_ = './seg_teacher.py'

model = dict(
    backbone=dict(base_channels=8, stem_channels=8),
    neck=dict(in_channels=[8, 16, 32], out_channels=16),
    decode_head=dict(in_channels=[16, 16, 16], channels=16),
)
