_base_ = [
    '../_base_/models/resnet14-w32_32px.py',
    '../_base_/datasets/cifar100-subset_bs128.py',
    '../_base_/schedules/cosine_20e_bs128.py',
    '../_base_/default_runtime.py',
]

train_cfg = dict(max_epochs=24, val_interval=5)
param_scheduler = dict(T_max=24, end=24)
