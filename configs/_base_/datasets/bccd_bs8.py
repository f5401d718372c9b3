"""BCCD blood cells, COCO json: 205 training, 87 validation and 72 test images of 640x480, read at half their size.

Validation runs on the test part. For choosing defaults, validate on the validation part instead:
--cfg-options val_dataloader.dataset.ann_file=coco/val.json
"""

_base_ = './coco_bs8.py'

data_root = '{{$DSKD_DATA_ROOT:../shared/data}}/bccd/'
metainfo = dict(classes=('RBC', 'WBC', 'Platelets'), palette=[(220, 20, 60), (60, 20, 220), (20, 180, 60)])

# Cells have no upright: any flip is another valid image.
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='RandomResize', scale=(320, 240), ratio_range=(0.8, 1.25), keep_ratio=True),
    dict(type='RandomCrop', crop_size=(240, 320)),
    dict(type='RandomFlip', prob=[0.25, 0.25, 0.25], direction=['horizontal', 'vertical', 'diagonal']),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='Resize', scale=(320, 240), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    # The metric reads the ground truth from the samples ('instances'), so that the part is chosen in one place.
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'instances')),
]

train_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        metainfo=metainfo,
        ann_file='coco/train.json',
        data_prefix=dict(img='JPEGImages/'),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        metainfo=metainfo,
        ann_file='coco/test.json',
        data_prefix=dict(img='JPEGImages/'),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
