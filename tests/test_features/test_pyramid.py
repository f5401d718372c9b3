"""Maps of several resolutions in one tensor, and back."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from dskd_mm.features import Pyramid

sizes = st.lists(st.tuples(st.integers(1, 5), st.integers(1, 5)), min_size=1, max_size=4)
examples = settings(derandomize=True, deadline=None, max_examples=60)


def draw_maps(sizes: list[tuple[int, int]], batch: int = 2, channels: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(batch, channels, *size, generator=generator) for size in sizes]


@examples
@given(sizes=sizes, batch=st.integers(1, 3), channels=st.integers(1, 4))
def test_packed_maps_are_unpacked_as_they_were(sizes, batch, channels):
    maps = draw_maps(sizes, batch, channels)
    pyramid = Pyramid.of(maps)
    packed = pyramid.pack(maps)
    assert pyramid.sizes == sizes
    assert packed.shape == (batch, channels, sum(height * width for height, width in sizes))
    for mine, expected in zip(pyramid.unpack(packed), maps, strict=True):
        assert torch.equal(mine, expected)
    assert torch.equal(pyramid.pack(pyramid.unpack(packed)), packed)


@examples
@given(sizes=sizes)
def test_locations_follow_each_other_row_by_row_and_level_by_level(sizes):
    maps = draw_maps(sizes)
    packed, location = Pyramid.pack(maps), 0
    for level in maps:
        for y in range(level.shape[2]):
            for x in range(level.shape[3]):
                assert torch.equal(packed[:, :, location], level[:, :, y, x])
                location += 1
    assert location == packed.shape[2]


@pytest.mark.parametrize('size', [(4, 6), (1, 1)])
def test_a_single_level_is_not_copied(size):
    (level,) = draw_maps([size])
    pyramid = Pyramid([size])
    packed = pyramid.pack([level])
    assert packed.shape == (2, 3, size[0] * size[1])
    assert packed.data_ptr() == level.data_ptr()
    (back,) = pyramid.unpack(packed)
    assert back.data_ptr() == level.data_ptr()
    assert back.shape == level.shape


def test_levels_of_a_packed_tensor_are_not_copied():
    pyramid = Pyramid([(2, 3), (1, 2)])
    packed = torch.zeros(2, 3, 8)
    for level in pyramid.unpack(packed):
        level += 1
    assert torch.equal(packed, torch.ones(2, 3, 8))


def test_gradients_pass_through():
    maps = [level.requires_grad_() for level in draw_maps([(2, 3), (1, 2)])]
    pyramid = Pyramid.of(maps)
    sum(i * level.sum() for i, level in enumerate(pyramid.unpack(pyramid.pack(maps)), start=1)).backward()
    for i, level in enumerate(maps, start=1):
        assert torch.equal(level.grad, torch.full_like(level, float(i)))


@examples
@given(sizes=sizes)
def test_one_function_sees_every_level_with_its_neighbours(sizes):
    maps, layer = draw_maps(sizes), nn.Conv2d(3, 5, 3, padding=1)
    pyramid = Pyramid.of(maps)
    packed = pyramid.map(layer, pyramid.pack(maps))
    assert packed.shape[:2] == (2, 5)
    for mine, level in zip(pyramid.unpack(packed), maps, strict=True):
        torch.testing.assert_close(mine, layer(level))


def test_every_level_may_have_a_function_of_its_own():
    maps = draw_maps([(4, 4), (2, 2), (1, 1)])
    pyramid, layers = Pyramid.of(maps), [nn.Conv2d(3, 2, 3, padding=1) for _ in maps]
    packed = pyramid.map(layers, pyramid.pack(maps))
    expected = [layer(level) for layer, level in zip(layers, maps, strict=True)]
    torch.testing.assert_close(pyramid.unpack(packed), expected)
    # A sequence of one is shared.
    assert torch.equal(pyramid.map(layers[:1], pyramid.pack(maps)), pyramid.map(layers[0], pyramid.pack(maps)))


@pytest.mark.parametrize('count', [2, 4])
def test_too_few_or_too_many_functions_are_an_error(count):
    maps = draw_maps([(4, 4), (2, 2), (1, 1)])
    with pytest.raises(ValueError):
        Pyramid.of(maps).map([F.relu] * count, Pyramid.pack(maps))


def test_a_function_may_change_the_number_of_locations():
    """A convolution without padding, or several predictions at a location."""
    maps = draw_maps([(4, 5), (3, 3)])
    pyramid = Pyramid.of(maps)
    inner = pyramid.map(lambda level: level[:, :, 1:-1, 1:-1], pyramid.pack(maps))
    assert torch.equal(inner, torch.cat([level[:, :, 1:-1, 1:-1].flatten(2) for level in maps], dim=2))
    twice = pyramid.map(lambda level: torch.stack([level, -level], dim=4), pyramid.pack(maps))
    assert twice.shape == (2, 3, 2 * (20 + 9))
    assert torch.equal(twice[:, :, 1::2], -twice[:, :, ::2])
    assert torch.equal(twice[:, :, ::2], pyramid.pack(maps))


def test_a_function_may_reduce_the_only_level_to_classes():
    maps = draw_maps([(4, 5)])
    pyramid, layer = Pyramid.of(maps), nn.Linear(3, 7)
    logits = pyramid.map(lambda level: layer(level.mean(dim=(2, 3))), pyramid.pack(maps))
    assert logits.shape == (2, 7)
    torch.testing.assert_close(logits, layer(maps[0].mean(dim=(2, 3))))
    assert Pyramid.pack([logits]) is logits


def test_a_tensor_of_another_length_is_an_error():
    with pytest.raises(RuntimeError):
        Pyramid([(2, 3), (1, 2)]).unpack(torch.zeros(2, 3, 9))
    with pytest.raises(RuntimeError):
        Pyramid([(2, 3)]).unpack(torch.zeros(2, 3, 7))
