_base_ = '../dskd/pspnet_r14-w8_r14-w32_dsb2018.py'

model = dict(
    type='dskd_mm.RTKDistiller',
    layers=dict(
        stage1=dict(student=dict(path='backbone.layer1', channels=8), teacher=dict(path='backbone.layer1', channels=32)),
        stage2=dict(student=dict(path='backbone.layer2', channels=16), teacher=dict(path='backbone.layer2', channels=64)),
        stage3=dict(student=dict(path='backbone.layer3', channels=32), teacher=dict(path='backbone.layer3', channels=128)),
    ),
)
