_base_ = [
    '../_base_/models/resnet8-w16_32px.py',
    '../_base_/datasets/cifar100-subset_bs128.py',
    '../_base_/schedules/cosine_20e_bs128.py',
    '../_base_/default_runtime.py',
]
