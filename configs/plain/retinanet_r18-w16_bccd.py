"""The student of retinanet_r18-w32_bccd.py: half of its width, trained as it is."""

_base_ = './retinanet_r18-w32_bccd.py'

model = dict(
    backbone=dict(base_channels=16, stem_channels=16),
    neck=dict(in_channels=[32, 64, 128], out_channels=32),
    bbox_head=dict(in_channels=32, feat_channels=32),
)
