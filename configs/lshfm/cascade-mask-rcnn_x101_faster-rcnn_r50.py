_base_ = '../dskd/cascade-mask-rcnn_x101_faster-rcnn_r50.py'

model = dict(type='dskd_mm.LSHFMDistiller')
