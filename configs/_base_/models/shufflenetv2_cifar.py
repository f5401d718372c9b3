# ShuffleNetV2 of width 1, 1.36 M parameters with the classifier.
model = dict(
    type='ImageClassifier',
    backbone=dict(type='dskd_mm.CIFARShuffleNetV2', widen_factor=1.0),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=100,
        in_channels=1024,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
        topk=(1, 5),
    ),
)
