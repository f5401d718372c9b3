_base_ = '../dskd/fcn_r14-w8_r14-w32_dsb2018.py'

# Of two classes DIST would compare little, so it is KL, with DSKD's temperature.
model = dict(
    type='dskd_mm.DiffKDDistiller',
    pairs=dict(logits=dict(distance=dict(type='dskd_mm.KDLoss', temperature=4))),
)
