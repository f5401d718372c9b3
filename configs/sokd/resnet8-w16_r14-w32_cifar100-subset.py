_base_ = '../dskd/resnet8-w16_r14-w32_cifar100-subset.py'

# The schedule is short: less of it for the policy.
model = dict(type='dskd_mm.SoKDDistiller', search_iters=150, loss_weights=dict(feature=5))
