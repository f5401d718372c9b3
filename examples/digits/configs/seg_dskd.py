"""DSKD student of the demo's segmenter: the plain student, distilled by default, but fewer locations hashed to save time."""

_base_ = './seg_plain.py'

model = dict(
    _delete_=True,
    type='dskd_mm.DSKDDistiller',
    student=_base_.model,
    teacher=dict(
        config='{{ fileDirname }}/seg_teacher.py',
        checkpoint='work_dirs/demo/seg/teacher/epoch_8.pth',
    ),
    site=dict(vectors_per_image=32),
)
