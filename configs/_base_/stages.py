"""The ends of the stages of student and teacher, as `layers` of the methods that compare them."""

four = {
    f'stage{i}': dict(student=dict(path=f'backbone.layer{i}'), teacher=dict(path=f'backbone.layer{i}')) for i in (1, 2, 3, 4)
}
three = {name: layer for name, layer in four.items() if name != 'stage4'}

classification = dict(layers=four)
segmentation = dict(layers=four)
pairs = {
    '^(resnet|wrn|shufflenet).*(cifar100|fashion-mnist)|^(fcn|pspnet|deeplabv3)_.*dsb2018': dict(
        layers=dict(_delete_=True, **three)
    ),
    # MobileNetV2 has seven stages; these are the last of each resolution.
    'mobilenetv2': dict(
        layers=dict(
            stage1=dict(student=dict(path='backbone.layer2')),
            stage2=dict(student=dict(path='backbone.layer3')),
            stage3=dict(student=dict(path='backbone.layer5')),
            stage4=dict(student=dict(path='backbone.layer7')),
        )
    ),
    'segformer': dict(
        layers={
            f'stage{i + 1}': dict(student=dict(path='backbone', index=i), teacher=dict(path='backbone', index=i))
            for i in (0, 1, 2, 3)
        }
    ),
}
del four, three
