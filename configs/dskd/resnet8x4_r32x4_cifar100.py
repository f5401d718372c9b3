_base_ = '../plain/resnet8x4_cifar100.py'

model = dict(
    _delete_=True,
    type='dskd_mm.DSKDDistiller',
    student=_base_.model,
    teacher=dict(
        config='{{ fileDirname }}/../plain/resnet32x4_cifar100.py',
        # Trained with that config; its last epoch.
        checkpoint='work_dirs/resnet32x4_cifar100/epoch_240.pth',
    ),
)
