_base_ = '../dskd/retinanet_r18-w8_r18-w32_bccd.py'

# The schedule is short: less of it for the policy.
model = dict(type='dskd_mm.SoKDDistiller', search_iters=120)
