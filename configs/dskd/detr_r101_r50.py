# COCO, 150 epochs. mmdet has a config for the teacher, but publishes no weights.
_base_ = 'mmdet::detr/detr_r50_8xb2-150e_coco.py'

custom_imports = dict(imports=['dskd_mm'], allow_failed_imports=False)

model = dict(
    _delete_=True,
    type='dskd_mm.DSKDDistiller',
    student=_base_.model,
    teacher=dict(
        config='{{ fileDirname }}/../plain/detr_r101_coco.py',
        # Trained with that config; its last epoch.
        checkpoint='work_dirs/detr_r101_coco/epoch_500.pth',
    ),
    # DETR has no linear classifier over features: those of the neck are guided by the teacher's loss.
    site=dict(type='dskd_mm.NeckSite'),
)
