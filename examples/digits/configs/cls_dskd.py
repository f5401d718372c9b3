"""DSKD student of the demo: the plain student, distilled with the distiller's defaults."""

_base_ = './cls_plain.py'

model = dict(
    _delete_=True,
    type='dskd_mm.DSKDDistiller',
    student=_base_.model,
    teacher=dict(
        config='{{ fileDirname }}/cls_teacher.py',
        checkpoint='work_dirs/demo/cls/teacher/epoch_10.pth',
    ),
)

# Early epochs are kept too: denoising is of most use, and so the best to look at, while the student is weak.
default_hooks = dict(checkpoint=dict(interval=2, max_keep_ckpts=-1))
