_base_ = '../dskd/wrn40-1_wrn40-2_cifar100.py'

model = dict(
    type='dskd_mm.RTKDistiller',
    layers=dict(
        stage1=dict(student=dict(path='backbone.layer1', channels=16), teacher=dict(path='backbone.layer1', channels=32)),
        stage2=dict(student=dict(path='backbone.layer2', channels=32), teacher=dict(path='backbone.layer2', channels=64)),
        stage3=dict(student=dict(path='backbone.layer3', channels=64), teacher=dict(path='backbone.layer3', channels=128)),
    ),
)
