_base_ = '../plain/deeplabv3_r14-w8_dsb2018.py'

model = dict(
    _delete_=True,
    type='dskd_mm.DSKDDistiller',
    student=_base_.model,
    teacher=dict(
        config='{{ fileDirname }}/../plain/deeplabv3_r14-w32_dsb2018.py',
        checkpoint='work_dirs/deeplabv3_r14-w32_dsb2018/epoch_30.pth',
    ),
)
