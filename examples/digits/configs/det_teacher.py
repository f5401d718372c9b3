"""Teacher of the detection demo: a RetinaNet with ResNet-18 on scenes of handwritten digits."""

_base_ = [
    './_base_/scenes_det.py',
    '../../../configs/_base_/default_runtime_det.py',
]

norm_cfg = dict(type='BN')
model = dict(
    type='RetinaNet',
    data_preprocessor=_base_.data_preprocessor,
    backbone=dict(
        type='ResNet',
        depth=18,
        base_channels=24,
        stem_channels=24,
        num_stages=3,
        strides=(1, 2, 2),
        dilations=(1, 1, 1),
        out_indices=(1, 2),
        norm_cfg=norm_cfg,
        norm_eval=False,
    ),
    neck=dict(type='FPN', in_channels=[48, 96], out_channels=48, num_outs=2, norm_cfg=norm_cfg),
    bbox_head=dict(
        type='RetinaHead',
        num_classes=10,
        in_channels=48,
        feat_channels=48,
        stacked_convs=1,
        norm_cfg=norm_cfg,
        anchor_generator=dict(type='AnchorGenerator', octave_base_scale=2, scales_per_octave=2, ratios=[1.5], strides=[8, 16]),
        bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_means=[0.0] * 4, target_stds=[1.0] * 4),
        loss_cls=dict(type='FocalLoss', use_sigmoid=True, gamma=2.0, alpha=0.25, loss_weight=1.0),
        loss_bbox=dict(type='L1Loss', loss_weight=1.0),
    ),
    train_cfg=dict(
        assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0, ignore_iof_thr=-1),
        sampler=dict(type='PseudoSampler'),
        allowed_border=-1,
        pos_weight=-1,
        debug=False,
    ),
    test_cfg=dict(nms_pre=1000, min_bbox_size=0, score_thr=0.05, nms=dict(type='nms', iou_threshold=0.5), max_per_img=100),
)

# Smaller batches than the students': twice their steps, once for all of them.
train_dataloader = dict(batch_size=8)
optim_wrapper = dict(optimizer=dict(type='AdamW', lr=2e-3, weight_decay=0.01), clip_grad=dict(max_norm=10))
param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=50),
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
