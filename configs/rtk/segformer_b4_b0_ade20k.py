_base_ = '../dskd/segformer_b4_b0_ade20k.py'

model = dict(
    type='dskd_mm.RTKDistiller',
    layers=dict(
        stage1=dict(student=dict(path='backbone', index=0, channels=32), teacher=dict(path='backbone', index=0, channels=64)),
        stage2=dict(student=dict(path='backbone', index=1, channels=64), teacher=dict(path='backbone', index=1, channels=128)),
        stage3=dict(student=dict(path='backbone', index=2, channels=160), teacher=dict(path='backbone', index=2, channels=320)),
        stage4=dict(student=dict(path='backbone', index=3, channels=256), teacher=dict(path='backbone', index=3, channels=512)),
    ),
)
