_base_ = '../dskd/resnet18_r34_in1k.py'

model = dict(
    _delete_=True,
    type='dskd_mm.LSHFMDistiller',
    lsh=dict(std=0.06),  # the paper's for this teacher
    student=_base_.model.student,
    teacher=_base_.model.teacher,
)
