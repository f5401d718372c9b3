_base_ = '../dskd/faster-rcnn_r101_r50.py'

model = dict(type='dskd_mm.VkDDistiller')
