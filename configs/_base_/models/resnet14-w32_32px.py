"""The CPU-sized teacher: CIFAR ResNet-14, width 32."""

model = dict(
    type='ImageClassifier',
    backbone=dict(type='dskd_mm.CIFARResNet', depth=14, stem_channels=32, base_channels=32),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=100, in_channels=128, loss=dict(type='CrossEntropyLoss')),
)
