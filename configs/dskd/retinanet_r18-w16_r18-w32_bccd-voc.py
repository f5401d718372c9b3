_base_ = '../plain/retinanet_r18-w16_bccd-voc.py'

# The teacher saw the same images and classes, in COCO's format.
model = dict(
    _delete_=True,
    type='dskd_mm.DSKDDistiller',
    student=_base_.model,
    teacher=dict(
        config='{{ fileDirname }}/../plain/retinanet_r18-w32_bccd.py',
        checkpoint='work_dirs/retinanet_r18-w32_bccd/epoch_60.pth',
    ),
)
