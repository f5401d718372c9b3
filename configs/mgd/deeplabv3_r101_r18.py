# The end of the backbone, as the authors do.
_base_ = '../dskd/deeplabv3_r101_r18.py'

model = dict(
    type='dskd_mm.ConfigurableDistiller',
    layers=dict(
        stage4=dict(student=dict(path='backbone.layer4', channels=512), teacher=dict(path='backbone.layer4', channels=2048)),
    ),
    distill_losses=dict(mgd=dict(type='dskd_mm.MGDLoss', on='stage4', mask_ratio=0.75, loss_weight=2e-5)),
)
