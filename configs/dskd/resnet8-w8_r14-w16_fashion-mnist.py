_base_ = '../plain/resnet8-w8_fashion-mnist.py'

model = dict(
    _delete_=True,
    type='dskd_mm.DSKDDistiller',
    student=_base_.model,
    teacher=dict(
        config='{{ fileDirname }}/../plain/resnet14-w16_fashion-mnist.py',
        checkpoint='work_dirs/resnet14-w16_fashion-mnist/epoch_8.pth',
    ),
)
