_base_ = '../dskd/resnet18_r34_in1k.py'

model = dict(
    _delete_=True,
    type='dskd_mm.RTKDistiller',
    student=_base_.model.student,
    teacher=_base_.model.teacher,
    layers=dict(
        stage1=dict(student=dict(path='backbone.layer1', channels=64), teacher=dict(path='backbone.layer1', channels=64)),
        stage2=dict(student=dict(path='backbone.layer2', channels=128), teacher=dict(path='backbone.layer2', channels=128)),
        stage3=dict(student=dict(path='backbone.layer3', channels=256), teacher=dict(path='backbone.layer3', channels=256)),
        stage4=dict(student=dict(path='backbone.layer4', channels=512), teacher=dict(path='backbone.layer4', channels=512)),
    ),
)
