"""The CIFAR backbones against the networks of the published CIFAR-100 tables."""

import pytest
import torch
from torch import nn

from dskd_mm.backbones.base import channel_shuffle
from dskd_mm.registry import MODELS

# Parameters with a linear layer for 100 classes. Exact numbers are those of the networks of CRD's
# repository (HobbitLong/RepDistiller), which mdistiller and DiffKD use too. Where only the rounded
# number of the ResNet paper (arXiv 1512.03385, table 6) or of a later table is in print, the exact
# one follows from it by arithmetic: six more layers of ResNet are 97,216 more parameters.
NETWORKS = {
    'resnet8': (dict(type='CIFARResNet', depth=8), 83892, (64, 8, 8)),
    'resnet14': (dict(type='CIFARResNet', depth=14), 181108, (64, 8, 8)),
    'resnet20': (dict(type='CIFARResNet', depth=20), 278324, (64, 8, 8)),
    'resnet32': (dict(type='CIFARResNet', depth=32), 472756, (64, 8, 8)),
    'resnet44': (dict(type='CIFARResNet', depth=44), 667188, (64, 8, 8)),
    'resnet56': (dict(type='CIFARResNet', depth=56), 861620, (64, 8, 8)),
    'resnet110': (dict(type='CIFARResNet', depth=110), 1736564, (64, 8, 8)),
    'resnet8x4': (
        dict(type='CIFARResNet', depth=8, stem_channels=32, base_channels=64),
        1233540,
        (256, 8, 8),
    ),
    'resnet32x4': (
        dict(type='CIFARResNet', depth=32, stem_channels=32, base_channels=64),
        7433860,
        (256, 8, 8),
    ),
    'wrn16-1': (dict(type='CIFARWideResNet', depth=16, widen_factor=1), 180916, (64, 8, 8)),
    'wrn16-2': (dict(type='CIFARWideResNet', depth=16, widen_factor=2), 703284, (128, 8, 8)),
    'wrn40-1': (dict(type='CIFARWideResNet', depth=40, widen_factor=1), 569780, (64, 8, 8)),
    'wrn40-2': (dict(type='CIFARWideResNet', depth=40, widen_factor=2), 2255156, (128, 8, 8)),
    'vgg8': (dict(type='CIFARVGG', depth=8), 3965028, (512, 4, 4)),
    'vgg11': (dict(type='CIFARVGG', depth=11), 9277284, (512, 4, 4)),
    'vgg13': (dict(type='CIFARVGG', depth=13), 9462180, (512, 4, 4)),
    'vgg16': (dict(type='CIFARVGG', depth=16), 14774436, (512, 4, 4)),
    'vgg19': (dict(type='CIFARVGG', depth=19), 20086692, (512, 4, 4)),
    'mobilenetv2': (dict(type='CIFARMobileNetV2'), 812836, (1280, 2, 2)),
    'shufflenetv1': (dict(type='CIFARShuffleNetV1'), 949258, (960, 4, 4)),
    'shufflenetv2': (dict(type='CIFARShuffleNetV2'), 1355528, (1024, 4, 4)),
    'resnet50': (dict(type='CIFARBottleneckResNet', depth=50), 23705252, (2048, 4, 4)),
}

# One small network a family and the (C, H) of all its stages.
FAMILIES = {
    'resnet8': [(16, 32), (32, 16), (64, 8)],
    'wrn16-1': [(16, 32), (32, 16), (64, 8)],
    'vgg8': [(64, 32), (128, 16), (256, 8), (512, 4), (512, 4)],
    'mobilenetv2': [(8, 16), (12, 16), (16, 8), (32, 4), (48, 4), (80, 2), (160, 2), (1280, 2)],
    'shufflenetv1': [(240, 16), (480, 8), (960, 4)],
    'shufflenetv2': [(116, 16), (232, 8), (464, 4), (1024, 4)],
    'resnet50': [(256, 32), (512, 16), (1024, 8), (2048, 4)],
}


def build(name: str, **kwargs) -> nn.Module:
    return MODELS.build({**NETWORKS[name][0], **kwargs})


@pytest.mark.parametrize('name', NETWORKS)
def test_published_parameter_count(name):
    _, expected, (channels, _, _) = NETWORKS[name]
    backbone = build(name)
    assert backbone.out_channels == channels
    classifier = nn.Linear(channels, 100)
    parameters = [*backbone.parameters(), *classifier.parameters()]
    assert sum(parameter.numel() for parameter in parameters) == expected


# The largest networks differ from a smaller one of their family in the number of blocks only.
@pytest.mark.parametrize('name', [name for name in NETWORKS if name not in ('resnet110', 'vgg19')])
def test_output_shape(name):
    backbone = build(name).eval()
    with torch.no_grad():
        outs = backbone(torch.randn(2, 3, 32, 32))
    assert isinstance(outs, tuple) and len(outs) == 1
    assert outs[0].shape == (2, *NETWORKS[name][2])
    assert outs[0].min() >= 0, 'the last map must be taken after its activation'


@pytest.mark.parametrize('name', FAMILIES)
@pytest.mark.parametrize('in_channels', [1, 3])
def test_backward_reaches_every_parameter(name, in_channels):
    backbone = build(name, in_channels=in_channels)
    backbone.init_weights()
    (out,) = backbone(torch.randn(2, in_channels, 32, 32))
    out.mean(dim=(2, 3)).pow(2).sum().backward()
    missing = [key for key, value in backbone.named_parameters() if value.grad is None]
    assert not missing
    assert all(value.grad.isfinite().all() for value in backbone.parameters())


@pytest.mark.parametrize('name', FAMILIES)
def test_out_indices(name):
    stages = FAMILIES[name]
    backbone = build(name, out_indices=range(len(stages))).eval()
    image = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        outs = backbone(image)
    assert [(out.shape[1], out.shape[2]) for out in outs] == stages
    assert backbone.stage_channels == tuple(channels for channels, _ in stages)

    # Fewer stages: the same maps, and no parameters of stages that are never run.
    shallow = build(name, out_indices=(0, 1)).eval()
    assert shallow.out_channels == stages[1][0]
    assert shallow.num_stages == 2
    keys = shallow.load_state_dict(backbone.state_dict(), strict=False)
    assert not keys.missing_keys
    with torch.no_grad():
        for ours, full in zip(shallow(image), outs, strict=False):
            torch.testing.assert_close(ours, full)


@pytest.mark.parametrize('name', FAMILIES)
def test_captured_maps_are_not_overwritten(name):
    backbone = build(name, out_indices=range(len(FAMILIES[name])))
    captured = []

    def capture(module, inputs, output):
        captured.append((module, output, output.detach().clone()))

    for module in backbone.modules():
        if module is not backbone:
            module.register_forward_hook(capture)
    with torch.no_grad():
        backbone(torch.randn(2, 3, 32, 32))
    for module, output, copy in captured:
        assert torch.equal(output, copy), f'the output of {module} was changed in place'


def test_negative_and_single_out_indices():
    assert build('resnet8', out_indices=-1).out_indices == (2,)
    assert build('vgg8', out_indices=(-4, -1)).out_indices == (1, 4)


@pytest.mark.parametrize('out_indices', [(3,), (-4,), (1, 0), (1, 1), ()])
def test_bad_out_indices(out_indices):
    with pytest.raises(ValueError, match='out_indices'):
        build('resnet8', out_indices=out_indices)


@pytest.mark.parametrize(
    ('cfg', 'word'),
    [
        (dict(type='CIFARResNet', depth=21), 'depth'),
        (dict(type='CIFARResNet', depth=2), 'depth'),
        (dict(type='CIFARWideResNet', depth=20), 'depth'),
        (dict(type='CIFARVGG', depth=10), 'depth'),
        (dict(type='CIFARVGG', depth=8, num_pools=5), 'num_pools'),
        (dict(type='CIFARBottleneckResNet', depth=18), 'depth'),
        (dict(type='CIFARShuffleNetV1', stage_channels=(240, 480)), 'stage_channels'),
        (dict(type='CIFARShuffleNetV2', widen_factor=0.7), 'widen_factor'),
    ],
)
def test_bad_arguments(cfg, word):
    with pytest.raises(ValueError, match=word):
        MODELS.build(cfg)


def test_vgg_at_64_pixels():
    backbone = build('vgg8', num_pools=4).eval()
    with torch.no_grad():
        (out,) = backbone(torch.randn(1, 3, 64, 64))
    assert out.shape == (1, 512, 4, 4)


def test_wide_resnet_dropout_acts_in_training_only():
    backbone = build('wrn16-1', drop_rate=0.5)
    image = torch.randn(2, 3, 32, 32)
    assert not torch.equal(backbone(image)[0], backbone(image)[0])
    backbone.eval()
    assert torch.equal(backbone(image)[0], backbone(image)[0])


@pytest.mark.parametrize('name', ['resnet20', 'wrn16-2', 'vgg8', 'mobilenetv2'])
def test_init_weights(name):
    """Convolutions have the variance 2 / (k * k * out_channels), norms are the identity."""
    backbone = build(name)
    backbone.init_weights()
    for module in backbone.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 4000:
            fan_out = module.weight.shape[0] * module.weight[0, 0].numel()
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.1)
        if isinstance(module, nn.BatchNorm2d):
            assert (module.weight == 1).all() and (module.bias == 0).all()


def test_networks_do_not_share_their_init_cfg():
    first, second = build('resnet8'), build('resnet8')
    assert first.init_cfg is not second.init_cfg
    first.init_cfg[0]['mode'] = 'fan_in'
    assert second.init_cfg[0]['mode'] == 'fan_out'
    assert build('resnet8').init_cfg[0]['mode'] == 'fan_out'


def test_channel_shuffle():
    x = torch.arange(6).reshape(1, 6, 1, 1)
    assert channel_shuffle(x, 2).flatten().tolist() == [0, 3, 1, 4, 2, 5]
    assert channel_shuffle(x, 3).flatten().tolist() == [0, 2, 4, 1, 3, 5]


def test_built_from_another_scope():
    """A host's config names them with the prefix and imports nothing."""
    from mmengine.registry import MODELS as ROOT
    from mmengine.registry import DefaultScope

    with DefaultScope.overwrite_default_scope('mmengine'):
        backbone = ROOT.build(dict(type='dskd_mm.CIFARResNet', depth=8))
    assert backbone.out_channels == 64
