_base_ = 'mmpretrain::mobilenet_v2/mobilenet-v2_8xb32_in1k.py'

custom_imports = dict(imports=['dskd_mm'], allow_failed_imports=False)

model = dict(
    _delete_=True,
    type='dskd_mm.DSKDDistiller',
    student=_base_.model,
    teacher=dict(
        config='mmpretrain::resnet/resnet50_8xb32_in1k.py',
        checkpoint='https://mmassets.onedl.ai/mmclassification/v0/resnet/resnet50_8xb32_in1k_20210831-ea4938fc.pth',
    ),
    # The teacher's 2048 channels are diffused in 1024, as DiffKD does for this teacher.
    autoencoder=dict(latent_channels=1024),
    # DKD's for ImageNet: its authors soften nothing and weigh the other classes less there.
    imitation=dict(type='dskd_mm.DKDLoss', beta=0.5, temperature=1),
)

# Recipe B1 of the literature in place of the base's 300 epochs: 100 epochs, a batch of 256 on
# 8 GPUs, learning rate 0.1 divided by 10 every 30 epochs.
optim_wrapper = dict(
    _delete_=True,
    optimizer=dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=1e-4),
)
param_scheduler = dict(_delete_=True, type='MultiStepLR', by_epoch=True, milestones=[30, 60, 90], gamma=0.1)
train_cfg = dict(max_epochs=100)

default_hooks = dict(checkpoint=dict(max_keep_ckpts=3, save_best='auto'))
