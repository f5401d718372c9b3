_base_ = '../dskd/deeplabv3_r101_r18.py'

model = dict(type='dskd_mm.SoKDDistiller')
