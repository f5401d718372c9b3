"""Plain student of the demo: ResNet-8 of width 3, trained as the teacher is."""

_base_ = './cls_teacher.py'

model = dict(
    backbone=dict(depth=8, stem_channels=3, base_channels=3),
    head=dict(in_channels=12),
)
