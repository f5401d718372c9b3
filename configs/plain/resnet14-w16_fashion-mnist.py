_base_ = [
    '../_base_/models/resnet14-w16_28px.py',
    '../_base_/datasets/fashion-mnist_bs128.py',
    '../_base_/schedules/cosine_20e_bs128.py',
    '../_base_/default_runtime.py',
]
