"""A short schedule for CPUs and training from scratch: AdamW with a warm-up, then a cosine to 0 over 40 epochs."""

_base_ = './adamw_60e_bs8.py'

param_scheduler = [
    dict(type='LinearLR', start_factor=0.05, by_epoch=False, begin=0, end=100),
    dict(type='CosineAnnealingLR', T_max=40, eta_min=0, by_epoch=True, begin=0, end=40, convert_to_iter_based=True),
]
train_cfg = dict(max_epochs=40, val_interval=10)
