"""DIST: [Knowledge Distillation from A Stronger Teacher](https://arxiv.org/abs/2205.10536).

CIFAR-100: β = γ = 2, τ = 4. ImageNet: β = γ = 2, τ = 1. CPU-sized images: τ = 1, **ours**, since 4 is a weight of 64, which
short schedules do not bear. Segmenters: β = γ = 1, τ = 1, without the auxiliary head, which the authors distil, too. For
detection their results are published, but no setting that we found.
"""

model = dict(type='dskd_mm.ConfigurableDistiller', distill_losses=dict(dist=dict(type='dskd_mm.DISTLoss')))
classification = dict(distill_losses=dict(dist=dict(beta=2, gamma=2)))
detection = None
pairs = {
    'cifar100$': dict(distill_losses=dict(dist=dict(temperature=4))),
    'cifar100-subset|fashion-mnist': dict(distill_losses=dict(dist=dict(temperature=1))),
}
