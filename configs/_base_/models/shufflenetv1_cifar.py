# ShuffleNetV1 with three groups, 0.95 M parameters with the classifier.
model = dict(
    type='ImageClassifier',
    backbone=dict(type='dskd_mm.CIFARShuffleNetV1', groups=3),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=100,
        in_channels=960,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
        topk=(1, 5),
    ),
)
