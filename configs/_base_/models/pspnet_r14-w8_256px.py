"""The student of pspnet_r14-w32_256px.py: a quarter of its width."""

_base_ = './pspnet_r14-w32_256px.py'

model = dict(
    backbone=dict(base_channels=8, stem_channels=8),
    decode_head=dict(in_channels=32, channels=16),
)
