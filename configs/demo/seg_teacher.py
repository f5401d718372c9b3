"""Teacher of the segmentation demo: three stages of ResNet-18 and an FCN head on all of them, as HRNet's."""

_base_ = [
    '../_base_/datasets/digit-scenes_seg.py',
    '../_base_/schedules/digit-scenes_6e.py',
    '../_base_/default_runtime_seg.py',
]

norm_cfg = dict(type='BN')
model = dict(
    type='EncoderDecoder',
    data_preprocessor=_base_.data_preprocessor,
    backbone=dict(
        type='ResNet',
        depth=18,
        base_channels=32,
        stem_channels=32,
        num_stages=3,
        strides=(1, 2, 2),
        dilations=(1, 1, 1),
        out_indices=(0, 1, 2),
        norm_cfg=norm_cfg,
        norm_eval=False,
    ),
    decode_head=dict(
        type='FCNHead',
        in_channels=[32, 64, 128],
        in_index=(0, 1, 2),
        input_transform='resize_concat',
        channels=64,
        num_convs=1,
        kernel_size=1,
        concat_input=False,
        dropout_ratio=0,
        num_classes=11,
        norm_cfg=norm_cfg,
        align_corners=False,
        # Nine of ten pixels are background.
        loss_decode=dict(type='CrossEntropyLoss', use_sigmoid=False, class_weight=[0.2] + [1.0] * 10),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)

default_hooks = dict(
    logger=dict(interval=10),
    # Only the last epoch is kept: no choice by the test images.
    checkpoint=dict(interval=6, save_best=None),
)
