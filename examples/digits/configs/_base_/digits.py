"""scikit-learn's handwritten digits: 898 training images, 899 test images by other writers, grey, upscaled to 16x16."""

dataset_type = 'Digits'
data_preprocessor = dict(type='ClsDataPreprocessor', num_classes=10, mean=[80.0], std=[90.0], to_rgb=False)

train_pipeline = [
    dict(type='RandomCrop', crop_size=16, padding=2),
    dict(type='PackInputs'),
]
test_pipeline = [dict(type='PackInputs')]

train_dataloader = dict(
    batch_size=32,
    num_workers=0,
    dataset=dict(type=dataset_type, split='train', size=16, pipeline=train_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='default_collate'),
    drop_last=True,
)
val_dataloader = dict(
    batch_size=899,
    num_workers=0,
    dataset=dict(type=dataset_type, split='test', size=16, pipeline=test_pipeline),
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
)
val_evaluator = dict(type='Accuracy', topk=(1,))
test_dataloader = val_dataloader
test_evaluator = val_evaluator
