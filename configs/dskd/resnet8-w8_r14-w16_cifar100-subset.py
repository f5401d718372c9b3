_base_ = '../plain/resnet8-w8_cifar100-subset.py'

model = dict(
    _delete_=True,
    type='dskd_mm.DSKDDistiller',
    student=_base_.model,
    teacher=dict(
        config='{{ fileDirname }}/../plain/resnet14-w16_cifar100-subset.py',
        checkpoint='work_dirs/resnet14-w16_cifar100-subset/epoch_24.pth',
    ),
)
