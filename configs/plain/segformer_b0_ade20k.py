_base_ = [
    '../_base_/models/segformer_mit-b0.py',
    '../_base_/datasets/ade20k_512x512.py',
    '../_base_/schedules/segformer_160k.py',
    '../_base_/default_runtime_seg_iters.py',
]

default_hooks = dict(checkpoint=dict(interval=16000))
