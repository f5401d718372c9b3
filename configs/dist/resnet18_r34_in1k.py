_base_ = '../dskd/resnet18_r34_in1k.py'

model = dict(
    _delete_=True,
    type='dskd_mm.ConfigurableDistiller',
    student=_base_.model.student,
    teacher=_base_.model.teacher,
    distill_losses=dict(dist=dict(type='dskd_mm.DISTLoss', beta=2, gamma=2)),
)
