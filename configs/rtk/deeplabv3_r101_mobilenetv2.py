_base_ = '../dskd/deeplabv3_r101_mobilenetv2.py'

model = dict(
    type='dskd_mm.RTKDistiller',
    layers=dict(
        stage1=dict(student=dict(path='backbone.layer2', channels=24), teacher=dict(path='backbone.layer1', channels=256)),
        stage2=dict(student=dict(path='backbone.layer3', channels=32), teacher=dict(path='backbone.layer2', channels=512)),
        stage3=dict(student=dict(path='backbone.layer5', channels=96), teacher=dict(path='backbone.layer3', channels=1024)),
        stage4=dict(student=dict(path='backbone.layer7', channels=320), teacher=dict(path='backbone.layer4', channels=2048)),
    ),
)
