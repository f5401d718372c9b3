# COCO, 300 epochs, 8 GPUs with 32 images each. The heads have 256 and 128 channels; the teacher's last convolutions, which
# guide, differ from level to level.
_base_ = 'mmdet::rtmdet/rtmdet_s_8xb32-300e_coco.py'

custom_imports = dict(imports=['dskd_mm'], allow_failed_imports=False)

model = dict(
    _delete_=True,
    type='dskd_mm.DSKDDistiller',
    student=_base_.model,
    teacher=dict(
        config='mmdet::rtmdet/rtmdet_l_8xb32-300e_coco.py',
        checkpoint='https://mmassets.onedl.ai/mmdetection/v3.0/rtmdet/rtmdet_l_8xb32-300e_coco/'
        'rtmdet_l_8xb32-300e_coco_20220719_112030-5a0be7c4.pth',
    ),
)

# mmdet's config inherits the 16 of another schedule; its learning rate is for 8 GPUs with 32 images each.
auto_scale_lr = dict(base_batch_size=256)
