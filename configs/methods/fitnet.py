"""FitNet: [FitNets: Hints for Thin Deep Nets](https://arxiv.org/abs/1412.6550).

All weights are **ours**. Images: the last map; CRD's 100 is for a middle layer. Detectors: the neck, with the weight that
DiffKD has for features. Segmenters: the map before the classifier; CIRKD's 10, beside KD, was worse on held-out nuclei.
"""

model = dict(type='dskd_mm.ConfigurableDistiller', distill_losses=dict(fitnet=dict(type='dskd_mm.FitNetLoss', loss_weight=5)))
detection = dict(site=dict(type='dskd_mm.NeckSite'), distill_losses=dict(fitnet=dict(align=dict(norm=None))))
segmentation = dict(distill_losses=dict(fitnet=dict(loss_weight=1)))
