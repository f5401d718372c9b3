_base_ = '../dskd/resnet18_r34_in1k.py'

model = dict(type='dskd_mm.SoKDDistiller')
