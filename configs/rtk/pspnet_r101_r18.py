_base_ = '../dskd/pspnet_r101_r18.py'

model = dict(
    type='dskd_mm.RTKDistiller',
    layers=dict(
        stage1=dict(student=dict(path='backbone.layer1', channels=64), teacher=dict(path='backbone.layer1', channels=256)),
        stage2=dict(student=dict(path='backbone.layer2', channels=128), teacher=dict(path='backbone.layer2', channels=512)),
        stage3=dict(student=dict(path='backbone.layer3', channels=256), teacher=dict(path='backbone.layer3', channels=1024)),
        stage4=dict(student=dict(path='backbone.layer4', channels=512), teacher=dict(path='backbone.layer4', channels=2048)),
    ),
)
