_base_ = '../dskd/rtmdet_l_s.py'

# The levels by name: this neck does not tell how many it has.
model = dict(
    type='dskd_mm.RTKDistiller',
    layers=dict(
        level0=dict(student=dict(path='neck', index=0, channels=128), teacher=dict(path='neck', index=0, channels=256)),
        level1=dict(student=dict(path='neck', index=1, channels=128), teacher=dict(path='neck', index=1, channels=256)),
        level2=dict(student=dict(path='neck', index=2, channels=128), teacher=dict(path='neck', index=2, channels=256)),
    ),
)
