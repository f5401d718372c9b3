_base_ = '../dskd/gfl_r101_r50.py'

model = dict(type='dskd_mm.DiffKDDistiller')
