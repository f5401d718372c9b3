# COCO, 500 epochs with a teacher of 150, which is the only DETR that mmdet publishes.
_base_ = 'mmdet::detr/detr_r18_8xb2-500e_coco.py'

custom_imports = dict(imports=['dskd_mm'], allow_failed_imports=False)

model = dict(
    _delete_=True,
    type='dskd_mm.DSKDDistiller',
    student=_base_.model,
    teacher=dict(
        config='mmdet::detr/detr_r50_8xb2-150e_coco.py',
        checkpoint='https://mmassets.onedl.ai/mmdetection/v3.0/detr/detr_r50_8xb2-150e_coco/'
        'detr_r50_8xb2-150e_coco_20221023_153551-436d03e8.pth',
    ),
    # DETR has no linear classifier over features: those of the neck are guided by the teacher's loss.
    site=dict(type='dskd_mm.NeckSite'),
)
