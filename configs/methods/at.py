"""AT: [Paying More Attention to Attention](https://arxiv.org/abs/1612.03928).

The end of each stage, weight 1000; for segmenters that is **ours**, as CIRKD has 10,000, beside KD.
"""

_base_ = '../_base_/stages.py'

losses = {f'at{i}': dict(type='dskd_mm.ATLoss', on=f'stage{i}') for i in (1, 2, 3, 4)}

model = dict(type='dskd_mm.ConfigurableDistiller')
classification = dict(distill_losses=losses)
detection = None
segmentation = dict(distill_losses=losses)
pairs = {
    # Those of three stages, as there.
    '^(resnet|wrn|shufflenet).*(cifar100|fashion-mnist)|^(fcn|pspnet|deeplabv3)_.*dsb2018': dict(
        distill_losses=dict(_delete_=True, at1=losses['at1'], at2=losses['at2'], at3=losses['at3'])
    ),
}
del losses
