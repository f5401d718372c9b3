"""Diffusion of packed levels: each by itself, whatever the others are."""

import pytest
import torch

from dskd_mm.diffusion import (
    DDIMSchedule,
    DiffusionDenoiser,
    FeatureDiffusion,
    NoiseAdapter,
    draw_like,
    mixing_weights,
    on_levels,
    table_rows,
)
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


def test_what_is_noisy_already_is_denoised_best_without_more_noise():
    """Of features of three causes in 16 channels the error falls by half and more, and by less if they are noised first."""
    generator = torch.Generator().manual_seed(0)
    causes = torch.randn(16, 3, generator=generator) / 3**0.5

    def features() -> torch.Tensor:
        return torch.einsum('ck,bkn->bcn', causes, torch.randn(256, 3, 1, generator=generator))

    def distance(feature: torch.Tensor) -> float:
        return float((feature - clean).square().mean() / clean.square().mean())

    torch.manual_seed(0)
    sampler = dict(steps=2, start=0.2, scale=0.0, noise='none')
    diffusion = FeatureDiffusion(16, 1, 'GN', denoiser=dict(time='film'), sampler=sampler, normalize=True)
    pyramid = Pyramid.of([torch.zeros(256, 16, 1, 1)])
    optimizer = torch.optim.Adam(diffusion.parameters(), 0.01)
    for _ in range(200):
        loss = diffusion.loss(features(), pyramid, generator)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    clean = features()
    noisy = clean + 0.3 * torch.randn(clean.shape, generator=generator)
    found = {}
    for diffusion.sampler.noise in ('none', 'schedule'):
        found[diffusion.sampler.noise] = distance(diffusion.denoise(noisy, pyramid, generator)[0].detach())
    assert found['none'] < 0.5 * distance(noisy)
    assert found['none'] < 0.7 * found['schedule']
