_base_ = '../dskd/segformer_b4_b0_ade20k.py'

model = dict(type='dskd_mm.DiffKDDistiller')
