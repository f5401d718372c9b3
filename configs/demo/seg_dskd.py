"""DSKD student of the segmentation demo: the plain student, distilled with the distiller's defaults."""

_base_ = './seg_plain.py'

model = dict(
    _delete_=True,
    type='dskd_mm.DSKDDistiller',
    student=_base_.model,
    teacher=dict(
        config='{{ fileDirname }}/seg_teacher.py',
        checkpoint='work_dirs/demo/seg/teacher/epoch_6.pth',
    ),
)
