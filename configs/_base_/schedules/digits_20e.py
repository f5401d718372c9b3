"""The common budget of the demo's runs: 20 epochs of 28 steps, evaluated after each."""

_base_ = './cosine_20e_bs128.py'

optim_wrapper = dict(optimizer=dict(lr=0.05))
train_cfg = dict(val_interval=1)
auto_scale_lr = dict(base_batch_size=32)
