# Recipe B1 of the literature is that of the base: 100 epochs, a batch of 256 on 8 GPUs, learning
# rate 0.1 divided by 10 every 30 epochs, weight decay 1e-4.
_base_ = 'mmpretrain::resnet/resnet18_8xb32_in1k.py'

custom_imports = dict(imports=['dskd_mm'], allow_failed_imports=False)

model = dict(
    _delete_=True,
    type='dskd_mm.DSKDDistiller',
    student=_base_.model,
    teacher=dict(
        config='mmpretrain::resnet/resnet34_8xb32_in1k.py',
        checkpoint='https://mmassets.onedl.ai/mmclassification/v0/resnet/resnet34_8xb32_in1k_20210831-f257d4e6.pth',
    ),
    # DKD's for ImageNet: its authors soften nothing and weigh the other classes less there.
    imitation=dict(type='dskd_mm.DKDLoss', beta=0.5, temperature=1),
)

default_hooks = dict(checkpoint=dict(max_keep_ckpts=3, save_best='auto'))
