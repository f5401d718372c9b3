_base_ = '../dskd/detr_r50_r18.py'

model = dict(type='dskd_mm.DiffKDDistiller')
