"""The CPU-sized teacher for 28x28 grey images: CIFAR ResNet-14, width 16."""

model = dict(
    type='ImageClassifier',
    backbone=dict(type='dskd_mm.CIFARResNet', depth=14, stem_channels=16, base_channels=16, in_channels=1),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=10, in_channels=64, loss=dict(type='CrossEntropyLoss')),
)
