# COCO, 20 epochs.
_base_ = 'mmdet::cascade_rcnn/cascade-rcnn_r50_fpn_20e_coco.py'

custom_imports = dict(imports=['dskd_mm'], allow_failed_imports=False)

model = dict(
    _delete_=True,
    type='dskd_mm.DSKDDistiller',
    student=_base_.model,
    teacher=dict(
        config='mmdet::cascade_rcnn/cascade-rcnn_r101_fpn_20e_coco.py',
        checkpoint='https://mmassets.onedl.ai/mmdetection/v2.0/cascade_rcnn/cascade_rcnn_r101_fpn_20e_coco/'
        'cascade_rcnn_r101_fpn_20e_coco_bbox_mAP-0.425_20200504_231812-5057dcc5.pth',
    ),
)
