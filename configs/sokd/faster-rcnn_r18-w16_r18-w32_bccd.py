_base_ = '../dskd/faster-rcnn_r18-w16_r18-w32_bccd.py'

# The schedule is short: less of it for the policy.
model = dict(type='dskd_mm.SoKDDistiller', search_iters=120)
