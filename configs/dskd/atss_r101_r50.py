# COCO, 12 epochs (1x), the only schedule of public models.
_base_ = 'mmdet::atss/atss_r50_fpn_1x_coco.py'

custom_imports = dict(imports=['dskd_mm'], allow_failed_imports=False)

model = dict(
    _delete_=True,
    type='dskd_mm.DSKDDistiller',
    student=_base_.model,
    teacher=dict(
        config='mmdet::atss/atss_r101_fpn_1x_coco.py',
        checkpoint='https://mmassets.onedl.ai/mmdetection/v2.0/atss/atss_r101_fpn_1x_coco/'
        'atss_r101_fpn_1x_20200825-dfcadd6f.pth',
    ),
)
