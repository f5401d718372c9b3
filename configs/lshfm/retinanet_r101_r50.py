_base_ = '../dskd/retinanet_r101_r50.py'

model = dict(type='dskd_mm.LSHFMDistiller')
