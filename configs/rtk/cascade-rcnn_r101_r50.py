_base_ = '../dskd/cascade-rcnn_r101_r50.py'

model = dict(type='dskd_mm.RTKDistiller')
