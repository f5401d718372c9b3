"""What CPU-sized data in COCO's format share: batches of 8, loaded by the training itself, and the metric.

`data_root`, `metainfo`, annotations, folders and pipelines are missing.
"""

dataset_type = 'CocoDataset'

train_dataloader = dict(
    batch_size=8,
    num_workers=0,
    dataset=dict(type=dataset_type),
    sampler=dict(type='DefaultSampler', shuffle=True),
    drop_last=True,
)
val_dataloader = dict(
    batch_size=8,
    num_workers=0,
    dataset=dict(type=dataset_type, test_mode=True),
    sampler=dict(type='DefaultSampler', shuffle=False),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='CocoMetric', metric='bbox')
test_evaluator = val_evaluator
