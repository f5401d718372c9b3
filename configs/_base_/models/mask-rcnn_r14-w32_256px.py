"""A CPU-sized Mask R-CNN for small objects: ResNet-18 of width 32 without its last stage, strides 4 to 16."""

_base_ = './faster-rcnn_r18-w32_320px.py'

model = dict(
    type='MaskRCNN',
    data_preprocessor=dict(pad_mask=True, pad_size_divisor=16),
    backbone=dict(num_stages=3, strides=(1, 2, 2), dilations=(1, 1, 1), out_indices=(0, 1, 2)),
    neck=dict(in_channels=[32, 64, 128]),
    # Anchors of 12 to 72 pixels: half of the nuclei have 11 to 24, the largest about 90.
    rpn_head=dict(anchor_generator=dict(scales=[3.0, 4.5], strides=[4, 8, 16])),
    roi_head=dict(
        bbox_roi_extractor=dict(featmap_strides=[4, 8, 16], finest_scale=14),
        bbox_head=dict(num_classes=1),
        mask_roi_extractor=dict(
            type='SingleRoIExtractor',
            roi_layer=dict(type='RoIAlign', output_size=14, sampling_ratio=2, use_torchvision=True),
            out_channels=64,
            featmap_strides=[4, 8, 16],
            finest_scale=14,
        ),
        mask_head=dict(
            type='FCNMaskHead',
            num_convs=2,
            in_channels=64,
            conv_out_channels=64,
            num_classes=1,
            loss_mask=dict(type='CrossEntropyLoss', use_mask=True, loss_weight=1.0),
        ),
    ),
    # Fewer proposals than for blood cells: crops hold up to a few hundred nuclei, and every positive one costs a mask.
    train_cfg=dict(rpn_proposal=dict(nms_pre=300, max_per_img=200), rcnn=dict(mask_size=28, sampler=dict(num=64))),
    test_cfg=dict(rcnn=dict(max_per_img=300, mask_thr_binary=0.5)),
)
