# The same layers as there: the ends of the stages.
_base_ = '../rtk/pspnet_r14-w8_r14-w32_dsb2018.py'

model = dict(
    type='dskd_mm.ConfigurableDistiller',
    distill_losses=dict(
        at1=dict(type='dskd_mm.ATLoss', on='stage1'),
        at2=dict(type='dskd_mm.ATLoss', on='stage2'),
        at3=dict(type='dskd_mm.ATLoss', on='stage3'),
    ),
)
