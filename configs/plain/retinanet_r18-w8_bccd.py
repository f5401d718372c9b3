"""The student of retinanet_r18-w32_bccd.py: a quarter of its width, trained as it is."""

_base_ = './retinanet_r18-w32_bccd.py'

model = dict(
    backbone=dict(base_channels=8, stem_channels=8),
    neck=dict(in_channels=[16, 32, 64], out_channels=16),
    bbox_head=dict(in_channels=16, feat_channels=16),
)
