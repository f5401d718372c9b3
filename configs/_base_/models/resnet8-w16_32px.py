"""The CPU-sized student: CIFAR ResNet-8, width 16."""

model = dict(
    type='ImageClassifier',
    backbone=dict(type='dskd_mm.CIFARResNet', depth=8, stem_channels=16, base_channels=16),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=100, in_channels=64, loss=dict(type='CrossEntropyLoss')),
)
