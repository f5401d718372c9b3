"""RTK-style attention, an approximation: [Knowledge Distillation with Representative Teacher Keys Based on Attention Mechanism
for Image Classification Model Compression](https://arxiv.org/abs/2206.12788).

Every layer of the student asks which layers of the teacher resemble it; it keeps the two best, its keys, and learns where in
the image they are active, weighted by attention that is learnt along. Images and segmenters: the ends of the stages, named in
`layers`. Detectors: the levels of the neck.

**Only the paper's abstract is known to us.** What it does not say is taken from
[AFD](https://github.com/clovaai/attention-feature-distillation) with the roles changed: see `RTKDistiller`. The loss compares
vectors of unit length by their mean squared difference, so it falls with the resolution: look at `loss_rtk_attention` in the
log and set `loss_weight`, which is AFD's for CIFAR-100.
"""

_base_ = '../_base_/stages.py'

model = dict(type='dskd_mm.RTKDistiller')
pairs = {
    # The neck of DETR has a single level, so these are the backbone's.
    'detr': dict(layers=_base_.classification.layers),
    # The neck of RTMDet does not tell how many levels it has.
    'rtmdet': dict(
        layers={f'level{i}': dict(student=dict(path='neck', index=i), teacher=dict(path='neck', index=i)) for i in (0, 1, 2)}
    ),
}
