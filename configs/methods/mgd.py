"""MGD: [Masked Generative Distillation](https://arxiv.org/abs/2205.01529).

Images: the last map, whole channels, λ = 0.15, weight 7e-5. Detectors: the neck, λ = 0.65, weight 2e-5 (one stage), or 0.45,
5e-7 (two). Segmenters: the end of the backbone, λ = 0.75, weight 2e-5, and CWD of the logits beside it, T = 4, weight 3, as in
the authors' configs.

The loss is a sum over a map. On smaller maps than the authors' (512x7x7 of images, 2048x64x64 of segmenters, the necks of
images of COCO's size) the weight is theirs by the ratio of the sizes; the comments tell the size here.
"""

model = dict(type='dskd_mm.ConfigurableDistiller', distill_losses=dict(mgd=dict(type='dskd_mm.MGDLoss')))
classification = dict(distill_losses=dict(mgd=dict(mask='channel', mask_ratio=0.15, loss_weight=7e-5)))
detection = dict(site=dict(type='dskd_mm.NeckSite'), distill_losses=dict(mgd=dict(mask_ratio=0.65, loss_weight=2e-5)))
two_stage_detection = dict(distill_losses=dict(mgd=dict(mask_ratio=0.45, loss_weight=5e-7)))
segmentation = dict(
    layers=dict(end=dict(student=dict(path='backbone'), teacher=dict(path='backbone'))),
    distill_losses=dict(
        mgd=dict(on='end', mask_ratio=0.75, loss_weight=2e-5),
        cwd=dict(type='dskd_mm.CWDLoss', on='logits', temperature=4, loss_weight=3),
    ),
)
pairs = {
    'resnet20_r56_cifar100': dict(distill_losses=dict(mgd=dict(loss_weight=4e-4))),  # 64x8x8
    'resnet8x4_r32x4_cifar100': dict(distill_losses=dict(mgd=dict(loss_weight=1e-4))),  # 256x8x8
    'wrn40-1_wrn40-2_cifar100': dict(distill_losses=dict(mgd=dict(loss_weight=2e-4))),  # 128x8x8
    'shufflenet.*_r32x4_cifar100': dict(distill_losses=dict(mgd=dict(loss_weight=4e-4))),  # 256x4x4
    'mobilenetv2_r50_cifar100': dict(distill_losses=dict(mgd=dict(loss_weight=2e-4))),  # 2048x2x2
    'r14-w32_cifar100-subset': dict(distill_losses=dict(mgd=dict(loss_weight=2e-4))),  # 128x8x8
    'r14-w16_cifar100-subset': dict(distill_losses=dict(mgd=dict(loss_weight=4e-4))),  # 64x8x8
    'fashion-mnist': dict(distill_losses=dict(mgd=dict(loss_weight=6e-4))),  # 64x7x7
    'bccd': dict(distill_losses=dict(mgd=dict(loss_weight=1e-3))),
    'faster-rcnn.*bccd': dict(distill_losses=dict(mgd=dict(loss_weight=1e-4))),
    'dsb2018': dict(distill_losses=dict(mgd=dict(loss_weight=1e-3))),  # 128x32x32
    'mask-rcnn.*dsb2018': dict(distill_losses=dict(mgd=dict(loss_weight=3e-5))),
}
