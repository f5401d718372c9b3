# COCO, 24 epochs (2x): the pair and schedule of DiffKD's table.
_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_2x_coco.py'

custom_imports = dict(imports=['dskd_mm'], allow_failed_imports=False)

model = dict(
    _delete_=True,
    type='dskd_mm.DSKDDistiller',
    student=_base_.model,
    teacher=dict(
        config='mmdet::faster_rcnn/faster-rcnn_r101_fpn_2x_coco.py',
        checkpoint='https://mmassets.onedl.ai/mmdetection/v2.0/faster_rcnn/faster_rcnn_r101_fpn_2x_coco/'
        'faster_rcnn_r101_fpn_2x_coco_bbox_mAP-0.398_20200504_210455-1d2dac9c.pth',
    ),
)
