_base_ = '../dskd/resnet8x4_r32x4_cifar100.py'

model = dict(
    type='dskd_mm.RTKDistiller',
    layers=dict(
        stage1=dict(student=dict(path='backbone.layer1', channels=64), teacher=dict(path='backbone.layer1', channels=64)),
        stage2=dict(student=dict(path='backbone.layer2', channels=128), teacher=dict(path='backbone.layer2', channels=128)),
        stage3=dict(student=dict(path='backbone.layer3', channels=256), teacher=dict(path='backbone.layer3', channels=256)),
    ),
)
