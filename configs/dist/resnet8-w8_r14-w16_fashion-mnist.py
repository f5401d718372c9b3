# The paper's temperature for ImageNet. Its 4 for CIFAR-100 is a weight of 64, which ten classes and a short schedule do not bear.
_base_ = '../dskd/resnet8-w8_r14-w16_fashion-mnist.py'

model = dict(
    type='dskd_mm.ConfigurableDistiller',
    distill_losses=dict(dist=dict(type='dskd_mm.DISTLoss', beta=2, gamma=2, temperature=1)),
)
