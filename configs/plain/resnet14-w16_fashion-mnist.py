_base_ = [
    '../_base_/models/resnet14-w16_28px.py',
    '../_base_/datasets/fashion-mnist_bs128.py',
    '../_base_/schedules/cosine_20e_bs128.py',
    '../_base_/default_runtime.py',
]

train_cfg = dict(max_epochs=8, val_interval=4)
param_scheduler = dict(T_max=8, end=8)
