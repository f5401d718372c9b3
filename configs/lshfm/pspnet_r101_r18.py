_base_ = '../dskd/pspnet_r101_r18.py'

model = dict(type='dskd_mm.LSHFMDistiller')
