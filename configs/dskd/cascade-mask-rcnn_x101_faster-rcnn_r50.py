# COCO, 24 epochs (2x): a pair of DiffKD's table of stronger teachers. The teacher was trained with masks, too; the student
# learns boxes.
_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_2x_coco.py'

custom_imports = dict(imports=['dskd_mm'], allow_failed_imports=False)

model = dict(
    _delete_=True,
    type='dskd_mm.DSKDDistiller',
    student=_base_.model,
    teacher=dict(
        config='mmdet::cascade_rcnn/cascade-mask-rcnn_x101-64x4d_fpn_20e_coco.py',
        checkpoint='https://mmassets.onedl.ai/mmdetection/v2.0/cascade_rcnn/cascade_mask_rcnn_x101_64x4d_fpn_20e_coco/'
        'cascade_mask_rcnn_x101_64x4d_fpn_20e_coco_20200512_161033-bdb5126a.pth',
    ),
    # The cascade's first stage knows proposals as the student's are: not yet refined, right from an overlap of 0.5.
    site=dict(stage=0),
)
