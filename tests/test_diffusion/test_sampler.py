"""Sampling against a loop of diffusers and loops written by hand."""

import math

import pytest
import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor, nn

from dskd_mm.diffusion import DDIMSchedule, DiffusionDenoiser, TeacherGuidedSampler
from dskd_mm.guidance import ClassifierGuidance, TeacherClassifier
from dskd_mm.structures import Target


@pytest.fixture
def features() -> tuple[Tensor, Tensor]:
    """Features and noise (2, 8, 4, 4)."""
    torch.manual_seed(0)
    feature, noise = torch.randn(2, 2, 8, 4, 4)
    return feature, noise


@pytest.fixture
def denoiser() -> nn.Module:
    torch.manual_seed(0)
    return DiffusionDenoiser(8).eval()


def no_noise(x: Tensor, timestep: int) -> Tensor:
    """A denoiser that finds no noise."""
    return torch.zeros_like(x)


def alphas() -> list[float]:
    """The cumulative product of 1 - beta, written out."""
    product, values = 1.0, []
    for i in range(1000):
        product *= 1 - (1e-4 + (0.02 - 1e-4) * i / 999)
        values.append(product)
    return values


@pytest.mark.parametrize('steps', [1, 5, 10])
def test_trajectory_is_a_loop_of_diffusers(features, denoiser, steps):
    feature, noise = features
    reference = DDIMScheduler(
        num_train_timesteps=1000, beta_start=1e-4, beta_end=0.02, clip_sample=False, set_alpha_to_one=True, steps_offset=0
    )
    reference.set_timesteps(2 * steps)
    timesteps = reference.timesteps[-steps:]
    trajectory: list[Tensor] = []
    with torch.no_grad():
        result = TeacherGuidedSampler(steps)(denoiser, DDIMSchedule(), feature, noise, trajectory=trajectory)
        x = reference.add_noise(feature, noise, timesteps[:1].expand(2))
        for t, clean in zip(timesteps, trajectory, strict=True):
            step = reference.step(denoiser(x, t.expand(2)), t, x, eta=0.0)
            torch.testing.assert_close(clean, step.pred_original_sample, rtol=1e-4, atol=1e-4)
            x = step.prev_sample
    torch.testing.assert_close(result, x, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(result, trajectory[-1])


@pytest.mark.parametrize(('point', 'interval'), [('noisy', 1), ('clean', 1), ('noisy', 2), ('noisy', 5)])
@pytest.mark.parametrize('scale', [0.5, 3.0])
def test_guided_sampling_is_the_loop_by_hand(features, denoiser, point, interval, scale):
    """Noise prediction minus sqrt(1 - alpha) s G, then a DDIM step; G from autograd."""
    feature, noise = features
    torch.manual_seed(1)
    layer = nn.Linear(8, 5)
    target = torch.randn(2, 5).softmax(dim=1)
    guidance = ClassifierGuidance(TeacherClassifier.from_layer(layer), Target(target), unit='gradient')
    sampler = TeacherGuidedSampler(scale=scale, guidance_point=point, guidance_interval=interval)

    def gradient(x: Tensor, to_seen) -> Tensor:
        """By x of the log-likelihood of what the classifier sees, a function of x."""
        with torch.enable_grad():
            leaf = x.clone().requires_grad_()
            log_p = (target * layer(to_seen(leaf).mean(dim=(2, 3))).log_softmax(dim=1)).sum()
            return torch.autograd.grad(log_p, leaf)[0]

    alpha = alphas()
    with torch.no_grad():
        result = sampler(denoiser, DDIMSchedule(), feature, noise, guidance)
        x = math.sqrt(alpha[400]) * feature + math.sqrt(1 - alpha[400]) * noise
        for i, t in enumerate((400, 300, 200, 100, 0)):
            epsilon, sigma = denoiser(x, t), math.sqrt(1 - alpha[t])

            # The derivative of the predicted clean feature, with the denoiser's output taken as constant, is the chain factor.
            def clean(value: Tensor, epsilon=epsilon, sigma=sigma, t=t) -> Tensor:
                return (value - sigma * epsilon) / math.sqrt(alpha[t])

            seen = clean if point == 'clean' else lambda value: value
            if i % interval == 0:
                kept = gradient(x, seen)
            epsilon_hat = epsilon - sigma * scale * kept
            x_0 = (x - sigma * epsilon_hat) / math.sqrt(alpha[t])
            after = alpha[t - 100] if t else 1.0
            x = math.sqrt(after) * x_0 + math.sqrt(1 - after) * epsilon_hat
    torch.testing.assert_close(result, x, rtol=1e-4, atol=1e-4)


def test_five_default_steps_shift_the_feature_by_one_and_a_half_gradients(features):
    """The figure in the documentation: the shifts add up to about 1.45 s G."""
    feature, noise = features
    gradient = torch.randn(2, 8, 4, 4)
    for scale in (0.5, 2.0):
        sampler = TeacherGuidedSampler(scale=scale)
        plain = sampler(no_noise, DDIMSchedule(), feature, noise)
        guided = sampler(no_noise, DDIMSchedule(), feature, noise, lambda x: gradient)
        ratio = (guided - plain) / (scale * gradient)
        torch.testing.assert_close(ratio, torch.full_like(ratio, 1.45), rtol=0.005, atol=0)


@pytest.mark.parametrize('scale', [1.0, 20.0])
def test_guidance_makes_the_target_more_likely(features, denoiser, scale):
    feature, noise = features
    classifier = TeacherClassifier(torch.randn(5, 8, generator=torch.Generator().manual_seed(0)))
    target = torch.eye(5)[[2, 4]]
    guidance = ClassifierGuidance(classifier, Target(target))
    with torch.no_grad():
        plain = TeacherGuidedSampler()(denoiser, DDIMSchedule(), feature, noise)
        guided = TeacherGuidedSampler(scale=scale)(denoiser, DDIMSchedule(), feature, noise, guidance)
    assert (classifier.log_prob(guided, target) > classifier.log_prob(plain, target)).all()


def test_scale_zero_never_asks_for_guidance(features, denoiser):
    def guidance(x: Tensor) -> Tensor:
        raise AssertionError('asked')

    sampled = TeacherGuidedSampler(scale=0)(denoiser, DDIMSchedule(), *features, guidance)
    torch.testing.assert_close(sampled, TeacherGuidedSampler()(denoiser, DDIMSchedule(), *features))


def test_start_is_noised_mixed_or_left(features):
    feature, noise = features
    schedule = DDIMSchedule()
    torch.testing.assert_close(
        TeacherGuidedSampler().initial(schedule, feature, noise), schedule.add_noise(feature, noise, 400)
    )
    torch.testing.assert_close(TeacherGuidedSampler(noise='none').initial(schedule, feature, noise), feature)
    gamma = torch.tensor([0.25, 1.0])[:, None, None, None]
    mixed = TeacherGuidedSampler(noise='adapter').initial(schedule, feature, noise, gamma)
    torch.testing.assert_close(mixed[0], 0.25 * feature[0] + 0.75 * noise[0])
    torch.testing.assert_close(mixed[1], feature[1])
    with pytest.raises(ValueError, match='gamma of a NoiseAdapter'):
        TeacherGuidedSampler(noise='adapter').initial(schedule, feature, noise)


@pytest.mark.parametrize('start', [0.2, 1.0])
def test_a_perfect_denoiser_restores_the_feature_from_anywhere(features, start):
    feature, noise = features
    sampler = TeacherGuidedSampler(steps=4, start=start)
    result = sampler(lambda x, t: noise, DDIMSchedule(), feature, noise)
    torch.testing.assert_close(result, feature, rtol=0, atol=1e-3)


def test_gradients_flow_through_every_step_unless_the_caller_forbids(features, denoiser):
    feature, noise = features
    feature.requires_grad_()
    TeacherGuidedSampler()(denoiser, DDIMSchedule(), feature, noise).sum().backward()
    assert feature.grad.abs().min() > 0
    rows = denoiser.time_embedding.weight.grad.abs().sum(dim=1).nonzero().flatten()
    assert rows.tolist() == [0, 100, 200, 300, 400]
    with torch.no_grad():
        assert not TeacherGuidedSampler()(denoiser, DDIMSchedule(), feature, noise).requires_grad


def test_sampling_stays_float32_under_autocast(features, denoiser):
    with torch.no_grad(), torch.autocast('cpu', torch.bfloat16):
        result = TeacherGuidedSampler()(denoiser, DDIMSchedule(), *features)
    assert result.dtype == torch.float32
    torch.testing.assert_close(result, TeacherGuidedSampler()(denoiser, DDIMSchedule(), *features), rtol=0.2, atol=0.2)


@pytest.mark.parametrize('switch', [dict(guidance_point='x_0'), dict(noise='gaussian')])
def test_unknown_switches_are_refused(switch):
    (name,) = switch
    with pytest.raises(ValueError, match=f'{name} must be .* but got {switch[name]!r}'):
        TeacherGuidedSampler(**switch)
