_base_ = '../plain/fcos_r18-w16_bccd.py'

model = dict(
    _delete_=True,
    type='dskd_mm.DSKDDistiller',
    student=_base_.model,
    teacher=dict(
        config='{{ fileDirname }}/../plain/fcos_r18-w32_bccd.py',
        checkpoint='work_dirs/fcos_r18-w32_bccd/epoch_60.pth',
    ),
)
