"""LSKD: [Logit Standardization in Knowledge Distillation](https://arxiv.org/abs/2403.01427).

KD of logits of zero mean and unit deviation. CIFAR-100: T = 2, cross-entropy and KD 0.1 : 9. Elsewhere T = 2, 1 : 1, **ours**:
the authors' scripts for ImageNet combine it with another method, and for other tasks there is no published setting.
"""

model = dict(
    type='dskd_mm.ConfigurableDistiller',
    distill_losses=dict(lskd=dict(type='dskd_mm.KDLoss', standardize=True, temperature=2, loss_weight=1)),
)
detection = None
pairs = {
    'cifar100|fashion-mnist': dict(
        student=dict(head=dict(loss=dict(loss_weight=0.1))), distill_losses=dict(lskd=dict(loss_weight=9))
    ),
    # Two classes have no relations beside their difference.
    'dsb2018': None,
}
