"""retinanet_r18-w16_bccd.py with its images read from Pascal VOC XML files: the same parts and the same metric."""

_base_ = './retinanet_r18-w16_bccd.py'

dataset_type = 'XMLDataset'

# Two red cells have boxes without an area; COCO's json leaves them out.
train_pipeline = list(_base_.train_pipeline)
train_pipeline.insert(2, dict(type='FilterAnnotations', min_gt_bbox_wh=(1, 1)))

train_dataloader = dict(
    dataset=dict(
        type=dataset_type,
        ann_file='ImageSets/Main/train.txt',
        data_prefix=dict(_delete_=True, sub_data_root=''),
        pipeline=train_pipeline,
    )
)
val_dataloader = dict(
    dataset=dict(type=dataset_type, ann_file='ImageSets/Main/test.txt', data_prefix=dict(_delete_=True, sub_data_root=''))
)
test_dataloader = val_dataloader
