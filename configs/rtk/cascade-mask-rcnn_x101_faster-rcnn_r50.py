_base_ = '../dskd/cascade-mask-rcnn_x101_faster-rcnn_r50.py'

model = dict(
    _delete_=True,
    type='dskd_mm.RTKDistiller',
    student=_base_.model.student,
    teacher=_base_.model.teacher,
)
