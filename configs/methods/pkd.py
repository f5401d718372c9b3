"""PKD: [General Distillation Framework for Object Detectors via Pearson Correlation
Coefficient](https://arxiv.org/abs/2207.02039).

Detectors: the neck, weight 10 (one stage) or 6 (two). There is no published setting for other tasks.
"""

model = dict(type='dskd_mm.ConfigurableDistiller', distill_losses=dict(pkd=dict(type='dskd_mm.PKDLoss')))
classification = None
detection = dict(site=dict(type='dskd_mm.NeckSite'), distill_losses=dict(pkd=dict(loss_weight=10)))
two_stage_detection = dict(distill_losses=dict(pkd=dict(loss_weight=6)))
segmentation = None
