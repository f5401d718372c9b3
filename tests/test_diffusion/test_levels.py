"""Diffusion of packed levels: each by itself, whatever the others are."""

import pytest
import torch

from dskd_mm.diffusion import DDIMSchedule, DiffusionDenoiser, NoiseAdapter, draw_like, mixing_weights, on_levels, table_rows
from dskd_mm.features import Pyramid


@pytest.fixture
def levels() -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(2, 8, 3, 5), torch.randn(2, 8, 1, 2)]


def test_each_level_is_denoised_as_it_would_be_alone(levels):
    denoiser = DiffusionDenoiser(8, norm='GN')
    timestep = torch.tensor([3, 700])
    packed = on_levels(denoiser, Pyramid.of(levels))(Pyramid.pack(levels), timestep)
    expected = torch.cat([denoiser(level, timestep).flatten(2) for level in levels], dim=2)
    torch.testing.assert_close(packed, expected)


def test_each_level_has_its_own_mixing_weight(levels):
    adapter = NoiseAdapter(8, norm='GN')
    found = mixing_weights(adapter, Pyramid.of(levels), Pyramid.pack(levels))
    assert found.shape == (2, 1, 17)
    first, second = (adapter(level).flatten().tolist() for level in levels)
    for image in range(2):
        assert found[image, 0].tolist() == pytest.approx([first[image]] * 15 + [second[image]] * 2)


def test_noise_and_timesteps_follow_from_the_generator():
    schedule = DDIMSchedule(num_train_steps=4)
    generator = torch.Generator().manual_seed(3)
    steps = schedule.draw_timesteps(400, generator)
    noise = draw_like(torch.zeros(50, 40, dtype=torch.bfloat16), generator)
    assert steps.unique().tolist() == [0, 1, 2, 3] and steps.bincount().min() > 60
    assert noise.dtype == torch.float32 and abs(float(noise.std()) - 1) < 0.1
    again = torch.Generator().manual_seed(3)
    assert torch.equal(steps, schedule.draw_timesteps(400, again)) and torch.equal(noise, draw_like(noise, again))


@pytest.mark.parametrize(('length', 'given', 'rows'), [(1000, None, 1280), (2000, None, 2000), (1000, 1000, 1000)])
def test_a_table_is_as_long_as_the_schedule(length, given, rows):
    assert table_rows(DDIMSchedule(num_train_steps=length), given) == rows


def test_a_table_that_is_too_short_is_refused():
    with pytest.raises(ValueError, match='embeds 999 timesteps, but the schedule has 1000'):
        table_rows(DDIMSchedule(), 999)
