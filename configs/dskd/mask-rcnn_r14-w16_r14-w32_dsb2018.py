_base_ = '../plain/mask-rcnn_r14-w16_dsb2018.py'

model = dict(
    _delete_=True,
    type='dskd_mm.DSKDDistiller',
    student=_base_.model,
    teacher=dict(
        config='{{ fileDirname }}/../plain/mask-rcnn_r14-w32_dsb2018.py',
        checkpoint='work_dirs/mask-rcnn_r14-w32_dsb2018/epoch_10.pth',
    ),
)
