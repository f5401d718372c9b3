"""The schedule and its DDIM steps against diffusers."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from dskd_mm.diffusion import DDIMSchedule


@pytest.fixture(scope='module')
def reference() -> DDIMScheduler:
    """The scheduler of DiffKD: linear, epsilon prediction, nothing clipped, a final alpha of 1."""
    return DDIMScheduler(
        num_train_timesteps=1000,
        beta_start=1e-4,
        beta_end=0.02,
        beta_schedule='linear',
        clip_sample=False,
        set_alpha_to_one=True,
        steps_offset=0,
        prediction_type='epsilon',
    )


def test_table_is_diffusers(reference):
    torch.testing.assert_close(DDIMSchedule().alphas_cumprod, reference.alphas_cumprod, rtol=0, atol=0)


def test_table_is_the_cumulative_product_in_float64():
    expected = np.cumprod(1 - np.linspace(0.001, 0.3, 50))
    np.testing.assert_allclose(DDIMSchedule(50, 0.001, 0.3).alphas_cumprod, expected, rtol=1e-5)


@pytest.mark.parametrize('steps', [1, 2, 5, 8, 10, 20])
def test_timesteps_are_the_last_half_of_diffusers(reference, steps):
    """DiffKD sets 2n timesteps and uses the last n."""
    reference.set_timesteps(2 * steps)
    assert DDIMSchedule().timesteps(steps) == reference.timesteps[-steps:].tolist()


@pytest.mark.parametrize('steps', [1, 3, 7, 50, 1000])
def test_timesteps_from_pure_noise_are_all_of_diffusers(reference, steps):
    reference.set_timesteps(steps)
    assert DDIMSchedule().timesteps(steps, start=1.0) == reference.timesteps.tolist()


def test_five_default_steps_are_those_of_the_paper():
    assert DDIMSchedule().timesteps(5) == [400, 300, 200, 100, 0]


@settings(derandomize=True, deadline=None)
@given(length=st.integers(1, 2000), steps=st.integers(1, 100), start=st.floats(0.01, 1.0))
def test_timesteps_fall_to_zero_inside_the_used_part(length, steps, start):
    schedule = DDIMSchedule(length)
    if int(length * start) < steps:
        with pytest.raises(ValueError, match='do not fit'):
            schedule.timesteps(steps, start)
        return
    result = schedule.timesteps(steps, start)
    assert len(result) == steps
    assert result[-1] == 0
    assert result[0] < length * start
    assert len({a - b for a, b in pairwise(result)}) <= 1, 'not evenly cut'


@pytest.mark.parametrize('shape', [(3, 4), (3, 4, 5, 6)])
def test_add_noise_is_diffusers(reference, shape):
    torch.manual_seed(0)
    clean, noise = torch.randn(2, *shape)
    timestep = torch.tensor([0, 400, 999])
    expected = reference.add_noise(clean, noise, timestep)
    torch.testing.assert_close(DDIMSchedule().add_noise(clean, noise, timestep), expected)


def test_one_timestep_for_all_is_the_same_timestep_for_each():
    clean, noise = torch.randn(2, 3, 4, 5, 5)
    schedule = DDIMSchedule()
    each = torch.full((3,), 250)
    torch.testing.assert_close(schedule.add_noise(clean, noise, 250), schedule.add_noise(clean, noise, each))
    torch.testing.assert_close(schedule.predict_clean(clean, noise, 250), schedule.predict_clean(clean, noise, each))


@pytest.mark.parametrize('steps', [5, 10])
def test_step_is_diffusers_at_every_timestep(reference, steps):
    torch.manual_seed(0)
    noisy, noise = torch.randn(2, 2, 3, 4, 4)
    reference.set_timesteps(2 * steps)
    schedule = DDIMSchedule()
    timesteps = schedule.timesteps(steps)
    for t, previous in zip(timesteps, [*timesteps[1:], None], strict=True):
        expected = reference.step(noise, t, noisy, eta=0.0)
        torch.testing.assert_close(schedule.step(noisy, noise, t, previous), expected.prev_sample)
        torch.testing.assert_close(schedule.predict_clean(noisy, noise, t), expected.pred_original_sample)


@settings(derandomize=True, deadline=None)
@given(timestep=st.integers(0, 999), batch=st.integers(1, 3), seed=st.integers(0, 2**16))
def test_predict_clean_inverts_add_noise(timestep, batch, seed):
    clean, noise = torch.randn(2, batch, 3, 2, 2, generator=torch.Generator().manual_seed(seed))
    schedule = DDIMSchedule()
    noisy = schedule.add_noise(clean, noise, timestep)
    # At the end of the schedule the signal is 0.0064 of the whole: rounding grows by its inverse.
    torch.testing.assert_close(schedule.predict_clean(noisy, noise, timestep), clean, rtol=0, atol=2e-4)


def test_noised_features_keep_unit_variance():
    clean, noise = torch.randn(2, 1, 64, 32, 32, generator=torch.Generator().manual_seed(0))
    for timestep in (0, 200, 500, 999):
        assert DDIMSchedule().add_noise(clean, noise, timestep).std() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_features_are_noised_with_float32_tables(dtype):
    """In half precision 1 - alpha_0 would be 0 and the first timestep free of noise."""
    schedule = DDIMSchedule()
    clean = torch.zeros(1, 2, 3, 3, dtype=dtype)
    with torch.autocast('cpu', torch.bfloat16):
        noisy = schedule.add_noise(clean, torch.ones_like(clean), 0)
    assert noisy.dtype == torch.float32
    torch.testing.assert_close(noisy, torch.full_like(noisy, 0.01))
    assert schedule.alphas_cumprod.dtype == torch.float32


def test_schedule_is_not_part_of_a_checkpoint():
    assert DDIMSchedule().state_dict() == {}


@pytest.mark.parametrize(
    'arguments',
    [(0,), (10, 0.0), (10, 0.2, 0.1), (10, 0.1, 1.0)],
    ids=['no step', 'beta 0', 'falling', 'beta 1'],
)
def test_impossible_schedules_are_refused(arguments):
    with pytest.raises(ValueError, match='expects num_train_steps >= 1 and 0 < beta_start'):
        DDIMSchedule(*arguments)


@pytest.mark.parametrize(('steps', 'start'), [(0, 0.5), (5, 0.0), (5, 1.5)])
def test_impossible_timesteps_are_refused(steps, start):
    with pytest.raises(ValueError, match='Expected steps >= 1'):
        DDIMSchedule().timesteps(steps, start)
