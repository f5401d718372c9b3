_base_ = '../dskd/deeplabv3_r14-w8_r14-w32_dsb2018.py'

# The schedule is short: less of it for the policy.
model = dict(type='dskd_mm.SoKDDistiller', search_iters=150)
