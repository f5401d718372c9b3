# COCO boxes and masks, 24 epochs (2x). The boxes' classifier is distilled.
_base_ = 'mmdet::mask_rcnn/mask-rcnn_r50_fpn_2x_coco.py'

custom_imports = dict(imports=['dskd_mm'], allow_failed_imports=False)

model = dict(
    _delete_=True,
    type='dskd_mm.DSKDDistiller',
    student=_base_.model,
    teacher=dict(
        config='mmdet::mask_rcnn/mask-rcnn_r101_fpn_2x_coco.py',
        checkpoint='https://mmassets.onedl.ai/mmdetection/v2.0/mask_rcnn/mask_rcnn_r101_fpn_2x_coco/'
        'mask_rcnn_r101_fpn_2x_coco_bbox_mAP-0.408__segm_mAP-0.366_20200505_071027-14b391c7.pth',
    ),
)
