"""A smaller student of retinanet_r18-w32_320px.py: a quarter of its width."""

_base_ = './retinanet_r18-w32_320px.py'

model = dict(
    backbone=dict(base_channels=8, stem_channels=8),
    neck=dict(in_channels=[16, 32, 64], out_channels=16),
    bbox_head=dict(in_channels=16, feat_channels=16),
)
