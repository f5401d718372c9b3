"""Nuclei of the Data Science Bowl 2018, COCO instances: 531 training and 133 validation images, trained on crops of 256.

There is no test part, so the validation part gives the results. For choosing defaults, hold 133 training images out instead
(the first ones: of all kinds of images they hold as many as the validation part):
--cfg-options train_dataloader.dataset.indices=-398 val_dataloader.dataset.ann_file=annotations/instances_train.json
val_dataloader.dataset.indices=133
"""

_base_ = './coco_bs8.py'

data_root = '{{$DSKD_DATA_ROOT:../shared/data}}/dsb2018_nuclei/'
metainfo = dict(classes=('nucleus',), palette=[(60, 180, 75)])

# Cells have no upright: any flip is another valid image. Scales multiply an image's own size, since sizes differ.
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    dict(
        type='RandomChoice',
        transforms=[[dict(type='Resize', scale_factor=factor, keep_ratio=True)] for factor in (0.8, 1.0, 1.25)],
    ),
    dict(type='RandomCrop', crop_size=(256, 256)),
    dict(type='RandomFlip', prob=[0.25, 0.25, 0.25], direction=['horizontal', 'vertical', 'diagonal']),
    dict(type='FilterAnnotations', min_gt_bbox_wh=(2, 2)),
    dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    # mmdet's heads ask for a factor of scale.
    dict(type='Resize', scale_factor=1.0, keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
    # The metric reads the ground truth from the samples ('instances'), so that the part is chosen in one place.
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'instances')),
]

train_dataloader = dict(
    dataset=dict(
        data_root=data_root,
        metainfo=metainfo,
        ann_file='annotations/instances_train.json',
        data_prefix=dict(img='images/'),
        filter_cfg=dict(filter_empty_gt=True),
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=1,
    dataset=dict(
        data_root=data_root,
        metainfo=metainfo,
        ann_file='annotations/instances_val.json',
        data_prefix=dict(img='images/'),
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(metric=['bbox', 'segm'])
test_evaluator = val_evaluator
