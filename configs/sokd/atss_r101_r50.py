_base_ = '../dskd/atss_r101_r50.py'

model = dict(type='dskd_mm.SoKDDistiller')
