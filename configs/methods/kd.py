"""KD: [Distilling the Knowledge in a Neural Network](https://arxiv.org/abs/1503.02531).

CIFAR-100: T = 4, cross-entropy and KD 0.1 : 0.9, as in [CRD](https://github.com/HobbitLong/RepDistiller). ImageNet: T = 1,
1 : 1. Segmenters: T = 1, weight 1, as in [CIRKD](https://github.com/winycg/CIRKD). Detectors, **ours**: class logits and
boxes, the same two terms as in DSKD.
"""

model = dict(type='dskd_mm.ConfigurableDistiller', distill_losses=dict(kd=dict(type='dskd_mm.KDLoss', temperature=1)))
detection = dict(distill_losses=dict(box=dict(type='dskd_mm.BoxLoss')))
pairs = {
    'cifar100|fashion-mnist': dict(
        student=dict(head=dict(loss=dict(loss_weight=0.1))),
        distill_losses=dict(kd=dict(temperature=4, loss_weight=0.9)),
    ),
    # Boxes for each class and for all; points instead of boxes.
    'cascade-mask-rcnn_x101_faster-rcnn|reppoints': dict(distill_losses=dict(box=None)),
    'detr': None,  # no linear classifier at its neck
}
