_base_ = '../dskd/resnet18_r34_in1k.py'

model = dict(
    _delete_=True,
    type='dskd_mm.ConfigurableDistiller',
    student=_base_.model.student,
    teacher=_base_.model.teacher,
    distill_losses=dict(mgd=dict(type='dskd_mm.MGDLoss', mask='channel', mask_ratio=0.15, loss_weight=7e-5)),
)
