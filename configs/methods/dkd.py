"""DKD: [Decoupled Knowledge Distillation](https://arxiv.org/abs/2203.08679).

α = 1. CIFAR-100: β = 8, T = 4 (ResNet-56 to 20: β = 2, WRN-40-2 to 40-1: β = 6), a linear warm-up of 20 epochs; elsewhere that
of all methods, 200 iterations. ImageNet: β = 0.5, T = 1. Faster R-CNN: the classes of proposals, β = 0.25, T = 1.

Left out where classes are independent (the focal loss of RetinaNet and FCOS) or only two are exclusive (nuclei): there is
nothing to decouple then. For segmentation there is no published setting.
"""

model = dict(type='dskd_mm.ConfigurableDistiller', distill_losses=dict(dkd=dict(type='dskd_mm.DKDLoss')))
detection = None
two_stage_detection = dict(distill_losses=dict(dkd=dict(beta=0.25, temperature=1)))
segmentation = None
pairs = {
    'in1k': dict(distill_losses=dict(dkd=dict(beta=0.5, temperature=1))),
    # 20 epochs of 782 iterations.
    'cifar100$': dict(warmup=15640),
    'resnet20_r56_cifar100': dict(distill_losses=dict(dkd=dict(beta=2))),
    'wrn40-1_wrn40-2_cifar100': dict(distill_losses=dict(dkd=dict(beta=6))),
    'cifar100-subset|fashion-mnist': dict(distill_losses=dict(dkd=dict(beta=8, temperature=4))),
    'dsb2018': None,
}
