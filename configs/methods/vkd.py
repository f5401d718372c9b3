"""VkD: [Improving Knowledge Distillation using Orthogonal Projections](https://arxiv.org/abs/2403.06213).

The student's feature is mapped to the teacher's width by a matrix that stays orthonormal, so that the student itself has to
learn the feature and not its projector; the teacher's is normalised. Logits are distilled as well where there are any. Images:
pooled vectors. Detectors: the levels of the neck, standardised. Segmenters: the map before the classifier.

**Not the paper's:** the same matrices by another parametrization than PyTorch's default, which weight decay breaks.
Segmentation, which the paper has not, is done as classification is, pixel by pixel. `VkDDistiller` lists all of it.
"""

model = dict(type='dskd_mm.VkDDistiller')
