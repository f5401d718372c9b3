"""Teacher of the demo: ResNet-14 of width 16 on handwritten digits, 10 epochs of 28 steps."""

_base_ = ['./_base_/digits.py', '../../../configs/_base_/default_runtime.py']

# The data set is this example's own: run the tools with PYTHONPATH=. from the repository's root.
custom_imports = dict(imports=['dskd_mm', 'examples.digits.dataset'], allow_failed_imports=False)

model = dict(
    type='ImageClassifier',
    backbone=dict(type='dskd_mm.CIFARResNet', depth=14, stem_channels=16, base_channels=16, in_channels=1),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=10, in_channels=64, loss=dict(type='CrossEntropyLoss')),
)

optim_wrapper = dict(optimizer=dict(type='SGD', lr=0.05, momentum=0.9, weight_decay=5e-4, nesterov=True))
param_scheduler = dict(
    type='CosineAnnealingLR', T_max=10, eta_min=0, by_epoch=True, begin=0, end=10, convert_to_iter_based=True
)
train_cfg = dict(by_epoch=True, max_epochs=10, val_interval=2)
val_cfg = dict()
test_cfg = dict()
default_hooks = dict(
    logger=dict(interval=7),
    # Only the last epoch is kept: no choice by the test images.
    checkpoint=dict(interval=10, save_best=None),
)
