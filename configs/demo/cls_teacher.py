"""Teacher of the demo: ResNet-14 of width 16 on handwritten digits."""

_base_ = [
    '../_base_/models/resnet14-w16_28px.py',
    '../_base_/datasets/digits_bs32.py',
    '../_base_/schedules/digits_20e.py',
    '../_base_/default_runtime.py',
]

default_hooks = dict(
    logger=dict(interval=7),
    # Only the last epoch is kept: no choice by the test images.
    checkpoint=dict(interval=20, save_best=None),
)
