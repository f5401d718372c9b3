# ResNet-50 with a 3x3 stem, 23.71 M parameters with the classifier.
model = dict(
    type='ImageClassifier',
    backbone=dict(type='dskd_mm.CIFARBottleneckResNet', depth=50),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=100,
        in_channels=2048,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
        topk=(1, 5),
    ),
)
