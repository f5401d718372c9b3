"""The student of pspnet_r14-w32_dsb2018.py: a quarter of its width, trained as it is."""

_base_ = './pspnet_r14-w32_dsb2018.py'

model = dict(
    backbone=dict(base_channels=8, stem_channels=8),
    decode_head=dict(in_channels=32, channels=16),
)
