_base_ = '../dskd/reppoints_x101_r50.py'

model = dict(type='dskd_mm.RTKDistiller')
