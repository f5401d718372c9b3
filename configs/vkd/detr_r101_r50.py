_base_ = '../dskd/detr_r101_r50.py'

model = dict(type='dskd_mm.VkDDistiller')
