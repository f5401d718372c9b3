_base_ = '../plain/retinanet_r18-w8_bccd.py'

model = dict(
    _delete_=True,
    type='dskd_mm.DSKDDistiller',
    student=_base_.model,
    teacher=dict(
        config='{{ fileDirname }}/../plain/retinanet_r18-w32_bccd.py',
        checkpoint='work_dirs/retinanet_r18-w32_bccd/epoch_60.pth',
    ),
)
