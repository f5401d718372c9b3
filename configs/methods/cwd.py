"""CWD: [Channel-wise Knowledge Distillation for Dense Prediction](https://arxiv.org/abs/2011.13256).

Detectors: the neck, T = 1, weight 10. Segmenters: logits alone, T = 4, weight 3. It is for dense predictions, not for images.
"""

model = dict(type='dskd_mm.ConfigurableDistiller', distill_losses=dict(cwd=dict(type='dskd_mm.CWDLoss')))
classification = None
detection = dict(site=dict(type='dskd_mm.NeckSite'), distill_losses=dict(cwd=dict(loss_weight=10)))
segmentation = dict(distill_losses=dict(cwd=dict(on='logits', temperature=4, loss_weight=3)))
