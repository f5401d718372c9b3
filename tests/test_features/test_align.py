"""Channel alignment, spatial alignment and norms by name."""

import pytest
import torch
from torch import nn

from dskd_mm.features import ChannelAlign, build_norm, match_space
from dskd_mm.features.norm import BatchNorm2d


@pytest.mark.parametrize(
    ('kind', 'norm', 'layers'),
    [
        ('conv', 'BN', ['Conv2d', 'BatchNorm2d']),
        ('conv', 'GN', ['Conv2d', 'GroupNorm']),
        ('conv', None, ['Conv2d', 'Identity']),
        ('mlp', 'BN', ['Conv2d', 'BatchNorm2d', 'ReLU', 'Conv2d', 'BatchNorm2d']),
    ],
)
def test_alignment_maps_channels_location_by_location(kind, norm, layers):
    torch.manual_seed(0)
    align = ChannelAlign(6, 8, kind, norm).eval()
    assert [type(layer).__name__ for layer in align.layers] == layers
    feature = torch.randn(2, 6, 3, 5)
    aligned = align(feature)
    assert aligned.shape == (2, 8, 3, 5)
    if norm != 'GN':
        torch.testing.assert_close(align(feature[:, :, 1:2, 2:3]), aligned[:, :, 1:2, 2:3])
    # A bias before a norm would do nothing.
    assert all((layer.bias is None) == (norm is not None) for layer in align.layers if isinstance(layer, nn.Conv2d))


def test_identity_needs_equal_channels():
    feature = torch.randn(2, 6, 3, 5)
    align = ChannelAlign(6, 6, 'identity')
    assert torch.equal(align(feature), feature)
    assert list(align.parameters()) == []
    with pytest.raises(ValueError, match='student has 6 and the teacher 8'):
        ChannelAlign(6, 8, 'identity')


def test_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="'conv', 'mlp' or 'identity', but got 'linear'"):
        ChannelAlign(6, 8, 'linear')


def test_same_space_is_left_alone():
    feature = torch.randn(2, 3, 4, 5)
    assert match_space(feature, (4, 5)) is feature


def test_shrinking_averages_blocks():
    feature = torch.randn(2, 3, 4, 6)
    expected = feature.reshape(2, 3, 2, 2, 3, 2).mean(dim=(3, 5))
    torch.testing.assert_close(match_space(feature, (2, 3)), expected)
    torch.testing.assert_close(match_space(feature, (1, 1)).flatten(1), feature.mean(dim=(2, 3)))


@pytest.mark.parametrize('size', [(8, 9), (8, 3), (2, 9)])
def test_growing_interpolates_between_the_values(size):
    feature = torch.randn(2, 3, 4, 5)
    grown = match_space(feature, size)
    assert grown.shape == (2, 3, *size)
    assert grown.max() <= feature.max()
    assert grown.min() >= feature.min()
    torch.testing.assert_close(match_space(torch.ones(1, 1, 4, 5), size), torch.ones(1, 1, *size))


def test_a_vector_grows_to_a_constant_map():
    vector = torch.randn(2, 3, 1, 1)
    torch.testing.assert_close(match_space(vector, (4, 5)), vector.expand(2, 3, 4, 5))


@pytest.mark.parametrize(
    ('channels', 'groups'), [(256, 32), (128, 32), (96, 16), (64, 16), (48, 8), (10, 2), (8, 2), (6, 1), (3, 1), (1, 1)]
)
def test_group_norm_keeps_at_least_four_channels_together(channels, groups):
    """Groups of one channel would erase a vector, whose every value is its own mean."""
    norm = build_norm('GN', channels)
    assert norm.num_groups == groups
    if channels > 1:
        assert norm(torch.randn(2, channels, 1, 1)).std() > 0.5


@pytest.mark.parametrize(('name', 'kind'), [('BN', BatchNorm2d), ('SyncBN', nn.SyncBatchNorm), (None, nn.Identity)])
def test_norms_by_name(name, kind):
    assert type(build_norm(name, 4)) is kind


def test_unknown_norm_is_refused():
    with pytest.raises(ValueError, match="but got 'LN'"):
        build_norm('LN', 4)
