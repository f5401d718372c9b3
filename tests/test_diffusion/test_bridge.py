"""The bridge from the student's feature to the teacher's."""

import pytest
import torch
from torch import Tensor, nn

from dskd_mm.diffusion import FeatureBridge
from dskd_mm.features import Pyramid

MAP = Pyramid([(4, 4)])


def bridge(**options) -> FeatureBridge:
    torch.manual_seed(0)
    return FeatureBridge(6, denoiser=dict(time='film', norm='GN'), normalize=True, **options)


class Straight(nn.Module):
    """The velocity between two known features, wherever it is asked."""

    def __init__(self, begin: Tensor, end: Tensor) -> None:
        super().__init__()
        self.velocity = begin - end
        self.asked: list[int] = []

    def network(self, noisy: Tensor, timestep: int) -> Tensor:
        self.asked.append(timestep)
        return self.velocity.unflatten(2, noisy.shape[2:])


@pytest.mark.parametrize('steps', [1, 2, 5])
def test_a_straight_way_ends_at_the_teachers_feature(steps):
    model = bridge(sampler=dict(steps=steps, scale=0.0))
    start, end, steps_seen = torch.randn(2, 6, 16), torch.randn(2, 6, 16), []
    model.std.fill_(2.0)
    model.denoiser = Straight(start / 2, end / 2)
    found, gamma = model.denoise(start, MAP, torch.Generator(), None, steps_seen)
    torch.testing.assert_close(found, end)
    assert gamma is None and len(steps_seen) == steps
    assert model.denoiser.asked[0] == 999 and len(model.denoiser.asked) == steps


@pytest.mark.parametrize(('steps', 'shifts'), [(1, 1.0), (2, 1.5)])
def test_guidance_shifts_every_predicted_end(steps, shifts):
    """Half of the first step's shift is walked, and all of the last one's."""
    model = bridge(sampler=dict(steps=steps, scale=0.3))
    start, end, direction = torch.randn(2, 6, 16), torch.randn(2, 6, 16), torch.randn(2, 6, 16)
    model.std.fill_(1.0)

    model.denoiser = Straight(start, end)
    found, _ = model.denoise(start, MAP, torch.Generator(), lambda scale, decoder: lambda x: direction)
    torch.testing.assert_close(found, end + shifts * 0.3 * direction)


def test_the_loss_is_the_error_of_the_velocity():
    model = bridge()
    prior, start = 2 * torch.randn(3, 6, 16), torch.randn(3, 6, 16)
    nn.init.normal_(model.denoiser.output.weight)
    found = model.loss(prior, MAP, torch.Generator().manual_seed(3), start)
    std = prior.std()
    t = torch.randint(1000, (3,), generator=torch.Generator().manual_seed(3))
    errors = []
    for i in range(3):
        way = float(t[i] + 1) / 1000
        x = ((1 - way) * prior[i] + way * start[i]) / std
        says = model.denoiser.network(x.reshape(1, 6, 4, 4), t[i : i + 1]).reshape(6, 16)
        errors.append((says - (start[i] - prior[i]) / std).square().mean())
    torch.testing.assert_close(found, torch.stack(errors).mean())
    torch.testing.assert_close(model.trivial_error(prior, start), ((start - prior) / std).square().mean())
    with pytest.raises(ValueError, match='FeatureBridge expects the features where its way begins'):
        model.loss(prior, MAP, torch.Generator())


def test_it_learns_what_leads_from_one_feature_to_the_other():
    """Where the one follows from the other, one step finds it."""
    model = bridge(sampler=dict(steps=1, scale=0.0))
    generator = torch.Generator().manual_seed(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(300):
        start = torch.randn(8, 6, 16)
        prior = 3 * start + 1
        optimizer.zero_grad()
        model.loss(prior, MAP, generator, start).backward()
        optimizer.step()
    with torch.no_grad():
        found, _ = model.denoise(start, MAP, generator)
    assert (found - prior).square().mean() < 0.3 * (start - prior).square().mean()
