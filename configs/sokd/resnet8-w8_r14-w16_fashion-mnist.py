_base_ = '../dskd/resnet8-w8_r14-w16_fashion-mnist.py'

# The schedule is short: less of it for the policy.
model = dict(type='dskd_mm.SoKDDistiller', search_iters=250, loss_weights=dict(feature=5))
