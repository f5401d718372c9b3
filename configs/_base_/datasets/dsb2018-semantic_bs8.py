"""Nuclei of the Data Science Bowl 2018, semantic masks: 531 training and 133 validation images, trained on crops of 256.

There is no test part, so the validation part gives the results. For choosing defaults, hold 133 training images out instead
(the first ones: of all kinds of images they hold as many as the validation part):
--cfg-options train_dataloader.dataset.indices=-398 val_dataloader.dataset.ann_file=train.txt val_dataloader.dataset.indices=133
"""

data_root = '{{$DSKD_DATA_ROOT:../shared/data}}/dsb2018_nuclei/'
dataset_type = 'BaseSegDataset'
metainfo = dict(classes=('background', 'nucleus'), palette=[(0, 0, 0), (60, 180, 75)])

# Cells have no upright: any flip is another valid image. Scales multiply an image's own size, since sizes differ.
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(
        type='RandomChoice',
        transforms=[[dict(type='Resize', scale_factor=factor, keep_ratio=True)] for factor in (0.8, 1.0, 1.25)],
    ),
    dict(type='RandomCrop', crop_size=(256, 256)),
    dict(type='RandomFlip', prob=[0.25, 0.25, 0.25], direction=['horizontal', 'vertical', 'diagonal']),
    dict(type='PackSegInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]

train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        metainfo=metainfo,
        ann_file='train.txt',
        data_prefix=dict(img_path='images', seg_map_path='semantic'),
        img_suffix='.png',
        pipeline=train_pipeline,
    ),
    sampler=dict(type='DefaultSampler', shuffle=True),
    drop_last=True,
)
val_dataloader = dict(
    batch_size=1,
    num_workers=0,
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        metainfo=metainfo,
        ann_file='val.txt',
        data_prefix=dict(img_path='images', seg_map_path='semantic'),
        img_suffix='.png',
        test_mode=True,
        pipeline=test_pipeline,
    ),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
val_evaluator = dict(type='IoUMetric', iou_metrics=['mIoU'])
test_dataloader = val_dataloader
test_evaluator = val_evaluator
