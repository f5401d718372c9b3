"""SoKD, an approximation: [Student-Oriented Teacher Knowledge Refinement for Knowledge
Distillation](https://arxiv.org/abs/2409.18785).

The teacher's feature is augmented (sheared, shifted, cut, noised) by a policy that learns, in the first thousand steps, to
bring it nearer to the student's. Shared heads look for distinctive areas in both, and inside of those found in the student's
the features are compared once more.

**No code of the authors is known to us:** weights, length of the search, the policy's gradient and the boxes of the areas are
reconstructions, so these numbers are not the paper's method to the letter. `SoKDDistiller` lists them. It needs feature maps;
detectors are distilled at their neck, so every pair has some. Vision transformers whose feature is a single vector are refused.

CPU-sized pairs search for 120 to 250 iterations, 3 to 23 % of their schedules, instead of 1,000. Images there have the weight 5
for the feature's loss, as our FitNet has on a last map.
"""

model = dict(type='dskd_mm.SoKDDistiller')
pairs = {
    'bccd': dict(search_iters=120),
    'dsb2018': dict(search_iters=150),
    'cifar100-subset': dict(search_iters=150, loss_weights=dict(feature=5)),
    'fashion-mnist': dict(search_iters=250, loss_weights=dict(feature=5)),
}
