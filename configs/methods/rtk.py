"""RTK-style attention, an approximation: [Knowledge Distillation with Representative Teacher Keys Based on Attention Mechanism
for Image Classification Model Compression](https://arxiv.org/abs/2206.12788).

Every layer of the student asks which layers of the teacher resemble it; it keeps the two best, its keys, and learns where in
the image they are active, weighted by attention that is learnt along. The layers are the ends of the backbone's stages, named
in `layers`: the levels of a detector's neck show objects of different sizes, so the second key of each would be a wrong one.
Images have KD of the logits beside it, weight 0.9, T = 4, as AFD has.

**Only the paper's abstract is known to us.** What it does not say is taken from
[AFD](https://github.com/clovaai/attention-feature-distillation) with the roles changed: see `RTKDistiller`. The loss compares
vectors of unit length by their mean squared difference, so it falls with the resolution: look at `loss_rtk_attention` in the
log and set `loss_weight`, which is AFD's for CIFAR-100.
"""

_base_ = '../_base_/stages.py'

model = dict(type='dskd_mm.RTKDistiller')
classification = dict(distill_losses=dict(kd=dict(type='dskd_mm.KDLoss', temperature=4, loss_weight=0.9)))
detection = dict(
    layers={
        f'stage{i + 1}': dict(student=dict(path='backbone', index=i), teacher=dict(path='backbone', index=i)) for i in (0, 1, 2)
    }
)
pairs = {
    # The backbone of DETR returns its last stage alone.
    'detr': dict(layers=dict(_delete_=True, **_base_.classification.layers)),
}
