_base_ = '../dskd/rtmdet_l_s.py'

model = dict(type='dskd_mm.SoKDDistiller')
