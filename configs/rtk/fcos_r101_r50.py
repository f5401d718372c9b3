_base_ = '../dskd/fcos_r101_r50.py'

model = dict(type='dskd_mm.RTKDistiller')
