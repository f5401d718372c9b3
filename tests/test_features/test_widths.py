"""Levels of different widths are treated as levels of one are, width by width."""

import pytest
import torch
from torch import nn

from dskd_mm.diffusion import FeatureDiffusion
from dskd_mm.features import ChannelAlign, PerWidth, Pyramid, align_levels, level_modules, modules_of, per_width


@pytest.fixture
def maps() -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(2, 4, 3, 5), torch.randn(2, 6, 2, 2), torch.randn(2, 4, 1, 2)]


def test_levels_are_packed_number_after_number(maps):
    pyramid, packed = Pyramid.of(maps), Pyramid.pack(maps)
    assert packed.shape == (2, 1, 4 * 15 + 6 * 4 + 4 * 2)
    assert all(map(torch.equal, pyramid.unpack(packed), maps))
    (first, (fours,)), (second, (sixes,)) = pyramid.by_width(packed)
    assert (first.sizes, second.sizes) == ([(3, 5), (1, 2)], [(2, 2)])
    torch.testing.assert_close(fours, torch.cat([maps[0].flatten(2), maps[2].flatten(2)], dim=2))
    torch.testing.assert_close(sixes, maps[1].flatten(2))
    doubled = pyramid.over_widths(lambda a, b: a + b * a.shape[1], packed, packed)
    for found, level in zip(pyramid.unpack(doubled), maps, strict=True):
        torch.testing.assert_close(found, level * (1 + level.shape[1]))


def test_levels_of_one_width_are_as_before(maps):
    levels = [maps[0], maps[2]]
    pyramid, packed = Pyramid.of(levels), Pyramid.pack(levels)
    assert pyramid.channels is None and packed.shape == (2, 4, 17)
    ((same, (own,)),) = pyramid.by_width(packed)
    assert same is pyramid and own is packed and pyramid.over_widths(lambda x: x, packed) is packed


def test_a_module_for_each_pair_of_widths():
    made = per_width(ChannelAlign, in_channels=(4, 6, 4, 6), out_channels=(8, 8, 8, 9))
    assert isinstance(made, PerWidth) and len(made) == 3
    assert level_modules(made, 4) == [made[0], made[1], made[0], made[2]] and modules_of(made) == list(made)
    one = per_width(ChannelAlign, in_channels=4, out_channels=8)
    assert isinstance(one, ChannelAlign) and level_modules(one, 2) == [one, one] and modules_of(one) == [one]
    with pytest.raises(ValueError, match='as many levels'):
        per_width(ChannelAlign, in_channels=(4, 6), out_channels=(8, 8, 8))


@pytest.mark.parametrize('widths', [(8, 9, 8), 8])
def test_norms_see_the_levels_of_a_width_together(maps, widths):
    align = per_width(ChannelAlign, in_channels=(4, 6, 4), out_channels=widths)
    pyramid, packed = align_levels(align, maps)
    together = align[0](torch.cat([maps[0].flatten(2), maps[2].flatten(2)], dim=2)[..., None])[..., 0].split([15, 2], dim=2)
    expected = [together[0].unflatten(2, (3, 5)), align[1](maps[1]), together[1].unflatten(2, (1, 2))]
    for found, level in zip(pyramid.unpack(packed), expected, strict=True):
        torch.testing.assert_close(found, level)


def test_a_diffusion_of_several_widths_is_one_of_each(maps):
    """The same noise, the same denoisers: what is made of a level does not depend on the others."""
    torch.manual_seed(0)
    both = FeatureDiffusion((4, 6, 4), norm='GN', normalize=False).eval()
    pyramid, packed = Pyramid.of(maps), Pyramid.pack(maps)
    noise: list[torch.Tensor] = []
    denoised, _ = both.denoise(packed, pyramid, torch.Generator().manual_seed(1))
    noise = pyramid.unpack(torch.randn(packed.shape, generator=torch.Generator().manual_seed(1)))
    for own, level, drawn, found in zip(level_modules(both.denoiser, 3), maps, noise, pyramid.unpack(denoised), strict=True):
        torch.testing.assert_close(both.sampler(own, both.schedule, level, drawn, None, None, None), found)
    loss = both.loss(packed, pyramid, torch.Generator().manual_seed(1))
    loss.backward()
    assert all(p.grad is not None for p in both.parameters()) and float(loss) > 0
    assert isinstance(both.denoiser, nn.ModuleList) and len(both.denoiser) == 2
