_base_ = '../dskd/retinanet_r18-w16_r18-w32_bccd-voc.py'

# About a tenth of the short schedule is spent on the policy.
model = dict(type='dskd_mm.SoKDDistiller', search_iters=120)
