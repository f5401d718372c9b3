# The paper's temperature for ImageNet. Its 4 for CIFAR-100 is a weight of 64, which a short schedule does not bear.
_base_ = '../dskd/resnet8-w16_r14-w32_cifar100-subset.py'

model = dict(
    type='dskd_mm.ConfigurableDistiller',
    distill_losses=dict(dist=dict(type='dskd_mm.DISTLoss', beta=2, gamma=2, temperature=1)),
)
