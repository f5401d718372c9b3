_base_ = '../plain/pspnet_r14-w8_dsb2018.py'

model = dict(
    _delete_=True,
    type='dskd_mm.DSKDDistiller',
    student=_base_.model,
    teacher=dict(
        config='{{ fileDirname }}/../plain/pspnet_r14-w32_dsb2018.py',
        checkpoint='work_dirs/pspnet_r14-w32_dsb2018/epoch_30.pth',
    ),
)
