_base_ = [
    '../_base_/models/pspnet_r18-d8.py',
    '../_base_/datasets/cityscapes_512x1024.py',
    '../_base_/schedules/sgd_poly_80k.py',
    '../_base_/default_runtime_seg_iters.py',
]
