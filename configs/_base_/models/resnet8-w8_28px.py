"""The CPU-sized student for 28x28 grey images: CIFAR ResNet-8, width 8."""

model = dict(
    type='ImageClassifier',
    backbone=dict(type='dskd_mm.CIFARResNet', depth=8, stem_channels=8, base_channels=8, in_channels=1),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(type='LinearClsHead', num_classes=10, in_channels=32, loss=dict(type='CrossEntropyLoss')),
)
