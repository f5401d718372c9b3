# Cross-entropy and distillation 1:9, as in the CIFAR-100 benchmark of CRD.
_base_ = '../dskd/resnet8-w16_r14-w32_cifar100-subset.py'

model = dict(
    type='dskd_mm.ConfigurableDistiller',
    student=dict(head=dict(loss=dict(loss_weight=0.1))),
    distill_losses=dict(kd=dict(type='dskd_mm.KDLoss', temperature=4, loss_weight=0.9)),
)
