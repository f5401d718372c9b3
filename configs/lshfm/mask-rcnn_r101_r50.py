_base_ = '../dskd/mask-rcnn_r101_r50.py'

model = dict(type='dskd_mm.LSHFMDistiller')
