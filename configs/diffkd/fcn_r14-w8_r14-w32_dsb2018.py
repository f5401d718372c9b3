_base_ = '../dskd/fcn_r14-w8_r14-w32_dsb2018.py'

model = dict(type='dskd_mm.DiffKDDistiller')
