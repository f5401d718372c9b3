_base_ = '../dskd/retinanet_x101_r50.py'

model = dict(type='dskd_mm.SoKDDistiller')
