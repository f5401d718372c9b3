"""What CPU-sized detectors share: ResNet-18 of width 32, strides 8 to 32, norms everywhere as it trains from scratch."""

model = dict(
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=32,
    ),
    backbone=dict(
        type='ResNet',
        depth=18,
        base_channels=32,
        stem_channels=32,
        num_stages=4,
        out_indices=(1, 2, 3),
        norm_eval=False,
    ),
    neck=dict(type='FPN', in_channels=[64, 128, 256], out_channels=64, num_outs=3, norm_cfg=dict(type='BN')),
)
