"""The common budget of the demo's detectors and segmenters: 6 epochs of 75 steps, evaluated after each."""

optim_wrapper = dict(optimizer=dict(type='AdamW', lr=1e-3, weight_decay=0.01), clip_grad=dict(max_norm=10))
param_scheduler = dict(
    type='CosineAnnealingLR', T_max=6, eta_min=0, by_epoch=True, begin=0, end=6, convert_to_iter_based=True
)
train_cfg = dict(by_epoch=True, max_epochs=6, val_interval=1)
val_cfg = dict()
test_cfg = dict()
auto_scale_lr = dict(base_batch_size=8)
