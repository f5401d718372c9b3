_base_ = '../dskd/shufflenetv1_r32x4_cifar100.py'

model = dict(
    type='dskd_mm.RTKDistiller',
    layers=dict(
        stage1=dict(student=dict(path='backbone.layer1', channels=240), teacher=dict(path='backbone.layer1', channels=64)),
        stage2=dict(student=dict(path='backbone.layer2', channels=480), teacher=dict(path='backbone.layer2', channels=128)),
        stage3=dict(student=dict(path='backbone.layer3', channels=960), teacher=dict(path='backbone.layer3', channels=256)),
    ),
)
