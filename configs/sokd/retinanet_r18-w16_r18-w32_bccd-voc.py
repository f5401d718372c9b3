_base_ = '../dskd/retinanet_r18-w16_r18-w32_bccd-voc.py'

# The schedule is short: less of it for the policy.
model = dict(type='dskd_mm.SoKDDistiller', search_iters=120)
