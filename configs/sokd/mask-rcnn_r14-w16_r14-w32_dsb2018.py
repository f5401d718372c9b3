_base_ = '../dskd/mask-rcnn_r14-w16_r14-w32_dsb2018.py'

# The schedule is short: less of it for the policy.
model = dict(type='dskd_mm.SoKDDistiller', search_iters=150)
