"""Scenes of handwritten digits as COCO json: 800 training and 200 test images of 64x64.

They are written by `make demo`, or by `python -m examples.digits.scenes`.
"""

dataset_type = 'CocoDataset'
data_root = 'work_dirs/demo/data/digit_scenes'
metainfo = dict(classes=tuple('0123456789'))

data_preprocessor = dict(
    type='DetDataPreprocessor', mean=[80.0, 80.0, 80.0], std=[50.0, 50.0, 50.0], bgr_to_rgb=True, pad_size_divisor=32
)

# No mirroring: a mirrored 2 is no digit.
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(64, 64), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(64, 64), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    # The metric reads the ground truth from the samples ('instances'), so that the folder is chosen in one place.
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'instances')),
]

train_dataloader = dict(
    batch_size=16,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        metainfo=metainfo,
        ann_file='annotations/train.json',
        data_prefix=dict(img='images/train/'),
        pipeline=train_pipeline,
    ),
    drop_last=True,
)
val_dataloader = dict(
    batch_size=100,
    num_workers=0,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        metainfo=metainfo,
        ann_file='annotations/test.json',
        data_prefix=dict(img='images/test/'),
        test_mode=True,
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(type='CocoMetric', metric='bbox')
test_evaluator = val_evaluator
