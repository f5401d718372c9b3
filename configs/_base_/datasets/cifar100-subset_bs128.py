"""The class-balanced CIFAR-100 subset: 20,000 training images, the official test part.

For choosing defaults, hold a block out instead of looking at the test part:
--cfg-options train_dataloader.dataset.blocks='[0,1,2]' and a validation set with split=train, blocks=[3].
"""

data_root = '{{$DSKD_DATA_ROOT:../shared/data}}/cifar100_subset'
dataset_type = 'dskd_mm.CIFAR100Subset'
data_preprocessor = dict(
    type='ClsDataPreprocessor',
    num_classes=100,
    # RGB
    mean=[129.304, 124.070, 112.434],
    std=[68.170, 65.392, 70.418],
    to_rgb=False,
)

train_pipeline = [
    dict(type='RandomCrop', crop_size=32, padding=4),
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
test_pipeline = [dict(type='PackInputs')]

train_dataloader = dict(
    batch_size=128,
    num_workers=0,
    dataset=dict(type=dataset_type, data_root=data_root, split='train', pipeline=train_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    drop_last=True,
)
val_dataloader = dict(
    batch_size=500,
    num_workers=0,
    dataset=dict(type=dataset_type, data_root=data_root, split='test', pipeline=test_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
)
val_evaluator = dict(type='Accuracy', topk=(1, 5))
test_dataloader = val_dataloader
test_evaluator = val_evaluator
