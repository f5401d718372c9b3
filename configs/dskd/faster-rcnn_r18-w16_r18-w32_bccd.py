_base_ = '../plain/faster-rcnn_r18-w16_bccd.py'

model = dict(
    _delete_=True,
    type='dskd_mm.DSKDDistiller',
    student=_base_.model,
    teacher=dict(
        config='{{ fileDirname }}/../plain/faster-rcnn_r18-w32_bccd.py',
        checkpoint='work_dirs/faster-rcnn_r18-w32_bccd/epoch_40.pth',
    ),
)
