_base_ = '../dskd/retinanet_r18-w8_r18-w32_bccd.py'

model = dict(type='dskd_mm.DiffKDDistiller')
