"""Teacher of the segmentation demo: a semantic FPN on three stages of ResNet-18, on scenes of handwritten digits."""

_base_ = [
    './_base_/scenes_seg.py',
    '../../../configs/_base_/default_runtime_seg.py',
]

norm_cfg = dict(type='BN')
model = dict(
    type='EncoderDecoder',
    data_preprocessor=_base_.data_preprocessor,
    backbone=dict(
        type='ResNet',
        depth=18,
        base_channels=16,
        stem_channels=16,
        num_stages=3,
        strides=(1, 2, 2),
        dilations=(1, 1, 1),
        out_indices=(0, 1, 2),
        norm_cfg=norm_cfg,
        norm_eval=False,
        # Blocks that begin as identities lose time that so short a training does not have.
        zero_init_residual=False,
    ),
    neck=dict(type='FPN', in_channels=[16, 32, 64], out_channels=32, num_outs=3, norm_cfg=norm_cfg),
    decode_head=dict(
        type='FPNHead',
        in_channels=[32, 32, 32],
        in_index=[0, 1, 2],
        feature_strides=[4, 8, 16],
        channels=32,
        dropout_ratio=0,
        num_classes=11,
        norm_cfg=norm_cfg,
        align_corners=False,
        # Nine of ten pixels are background.
        loss_decode=dict(type='CrossEntropyLoss', class_weight=[0.2] + [1.0] * 10),
    ),
    train_cfg=dict(),
    test_cfg=dict(mode='whole'),
)

# Adam would take far longer to tell the digits apart: the gradients of the easy part, digit or background, come first and set
# its scale.
optim_wrapper = dict(
    optimizer=dict(type='SGD', lr=0.3, momentum=0.9, weight_decay=5e-4, nesterov=True), clip_grad=dict(max_norm=10)
)
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=40),
    dict(type='CosineAnnealingLR', T_max=8, eta_min=0, by_epoch=True, begin=0, end=8, convert_to_iter_based=True),
]
train_cfg = dict(by_epoch=True, max_epochs=8, val_interval=2)
val_cfg = dict()
test_cfg = dict()
default_hooks = dict(
    logger=dict(interval=10),
    # Only the last epoch is kept: no choice by the test images.
    checkpoint=dict(interval=8, save_best=None),
)
