"""Plain student of the segmentation demo: a quarter of the teacher's width, trained as the teacher is."""

_base_ = './seg_teacher.py'

model = dict(
    backbone=dict(base_channels=8, stem_channels=8),
    decode_head=dict(in_channels=[8, 16, 32], channels=16),
)
