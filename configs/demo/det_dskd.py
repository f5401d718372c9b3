"""DSKD student of the detection demo: the plain student, distilled with the distiller's defaults."""

_base_ = './det_plain.py'

model = dict(
    _delete_=True,
    type='dskd_mm.DSKDDistiller',
    student=_base_.model,
    teacher=dict(
        config='{{ fileDirname }}/det_teacher.py',
        checkpoint='work_dirs/demo/det/teacher/epoch_6.pth',
    ),
)
