"""DSKD student of the demo: the plain student, distilled with the distiller's defaults."""

_base_ = './cls_plain.py'

model = dict(
    _delete_=True,
    type='dskd_mm.DSKDDistiller',
    student=_base_.model,
    teacher=dict(
        config='{{ fileDirname }}/cls_teacher.py',
        checkpoint='work_dirs/demo/cls/teacher/epoch_20.pth',
    ),
)
