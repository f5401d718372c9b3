"""Channels of layers are found by a pass that computes shapes only."""

import copy
import re

import pytest
import torch
from torch import Tensor, nn

from dskd_mm.features import fill_channels, find_channels


class Toy(nn.Module):
    """A stem with a norm, two levels in a tuple and a head that ``extract_feat`` does not call."""

    def __init__(self, in_channels: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(in_channels, 4, 3, stride=2), nn.SyncBatchNorm(4), nn.ReLU(inplace=True))
        self.neck = Levels()
        self.head = nn.Linear(4, 2)

    def extract_feat(self, x: Tensor) -> tuple[Tensor, ...]:
        return self.neck(self.stem(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.extract_feat(x)[0].mean(dim=(2, 3)))


class Levels(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return x, x[:, :, ::2, ::2], torch.cat([x, x], 1), x.flatten(2)


@pytest.mark.parametrize(
    ('layer', 'channels'),
    [
        (dict(path='stem'), 4),
        (dict(path='stem.0', io='input'), 5),
        (dict(path='neck', index=0), 4),
        (dict(path='neck', index=2), 8),
    ],
)
def test_channels_are_found(layer, channels):
    assert find_channels(Toy(in_channels=5), dict(a=layer, b=dict(path='stem.1'))) == dict(a=channels, b=4)


def test_model_is_left_as_it_is():
    model = Toy().train()
    before = copy.deepcopy(model.state_dict())
    find_channels(model, dict(a=dict(path='stem')))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(module.training and not module._forward_hooks for module in model.modules())
    assert {parameter.device.type for parameter in model.parameters()} == {'cpu'}


def test_given_channels_are_kept_and_nothing_is_built():
    layers = dict(a=dict(path='stem', channels=7))
    assert fill_channels(layers, lambda: pytest.fail('built'), 'teacher') == layers


def test_missing_channels_are_filled():
    layers = dict(a=dict(path='stem', channels=7), b=dict(path='neck', index=2), c=dict(path='stem', channels=None))
    found = fill_channels(layers, Toy, 'teacher')
    assert found == dict(
        a=dict(path='stem', channels=7), b=dict(path='neck', index=2, channels=8), c=dict(path='stem', channels=4)
    )


@pytest.mark.parametrize(
    ('layer', 'message'),
    [
        (dict(path='stems'), r"teacher \(Toy\) has no module 'stems'.*'stem'"),
        (dict(path='head'), r"\['head'\] in the teacher \(Toy\) were not found.*never fired.*channels=\.\.\."),
        (dict(path='neck', index='all'), r'of one width, but got the shapes .*index='),
        (dict(path='neck', index=3), r'maps \(B, C, H, W\) or vectors .*\(2, 4, \d+\)'),
    ],
)
def test_what_cannot_be_found_is_told(layer, message):
    with pytest.raises(ValueError, match=re.compile(message, re.DOTALL)):
        find_channels(Toy(), dict(a=layer), 'teacher')
