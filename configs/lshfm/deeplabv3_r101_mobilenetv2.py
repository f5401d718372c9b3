_base_ = '../dskd/deeplabv3_r101_mobilenetv2.py'

model = dict(type='dskd_mm.LSHFMDistiller')
