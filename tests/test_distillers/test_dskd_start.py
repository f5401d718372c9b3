"""Where DSKD's sampling begins: the student's feature, the teacher's, or between; and the controls of the benchmark."""

import copy
import math
from unittest.mock import patch

import pytest
import torch
from mmengine.config import DictAction
from mmengine.logging import MessageHub
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS
from torch import Tensor, nn

from benchmarks.variants import VARIANTS
from dskd_mm.testing import classifier_config, random_batch, random_teacher
from support import build_distiller, dense_distiller_config, matched_cosine

NO_NOISE = dict(steps=2, start=0.2, scale=0.0, noise='none', guidance_point='clean')


@pytest.fixture(scope='module')
def teacher(tmp_path_factory) -> dict:
    return random_teacher(str(tmp_path_factory.mktemp('teacher')))


def build(teacher: dict, **switches) -> nn.Module:
    """A distiller whose denoiser says more than it does at the start."""
    torch.manual_seed(0)
    config = dict(type='dskd_mm.DSKDDistiller', student=classifier_config(), teacher=teacher, noise_seed=7, warmup=0)
    distiller = MODELS.build(config | switches).train()
    if distiller.diffusion is not None:
        nn.init.normal_(distiller.diffusion.denoiser.output.weight, std=0.1)
    return distiller


def of_variant(teacher: dict, name: str) -> nn.Module:
    """A distiller with the options of a variant of the benchmark."""
    switches: dict = {}
    for key, value in VARIANTS[name].options.items():
        place, keys = switches, key.removeprefix('model.').split('.')
        for part in keys[:-1]:
            place = place.setdefault(part, {})
        place[keys[-1]] = DictAction._parse_iterable(value)
    return build(teacher, **switches)


def denoised(distiller: nn.Module) -> tuple[Tensor, Tensor, Tensor]:
    """z, the teacher's feature in z's moments, and ẑ of a random batch, (B, C, N)."""
    batch, found = distiller.denoise(*random_batch())
    z, f = batch.aligned, batch.teacher.features[0].flatten(2)
    matched = torch.empty_like(z)
    for c in range(z.shape[1]):
        own = f[:, c]
        unit = (own - own.mean()) / (own.var(unbiased=False) + 1e-8).sqrt()
        matched[:, c] = z[:, c].mean() + z[:, c].std(unbiased=False) * unit
    return z, matched, found


def walk(distiller: nn.Module, begin: Tensor) -> Tensor:
    """DDIM of a 4 x 4 map without noise, written down once more."""
    schedule, std = distiller.diffusion.schedule, distiller.diffusion.std
    x = begin / std
    for t, later in ((100, 0), (0, None)):
        with torch.no_grad():
            noise = distiller.diffusion.denoiser(x.unflatten(2, (4, 4)), t).flatten(2)
        a = float(schedule.alphas_cumprod[t])
        clean = (x - math.sqrt(1 - a) * noise) / math.sqrt(a)
        b = 1.0 if later is None else float(schedule.alphas_cumprod[later])
        x = math.sqrt(b) * clean + math.sqrt(1 - b) * noise
    return x * std


@pytest.mark.parametrize('mix', [1.0, 0.3, 0.0])
def test_what_is_denoised_is_the_mix_of_both_features(teacher, mix):
    distiller = build(teacher, mix=mix, sampler=NO_NOISE)
    z, matched, found = denoised(distiller)
    assert z.shape[2] == 16 and (matched - z).abs().max() > 0.1
    torch.testing.assert_close(found, walk(distiller, mix * matched + (1 - mix) * z), rtol=1e-4, atol=1e-4)


def test_no_mix_is_what_was_before(teacher):
    """And a mix changes what is sampled, but neither the noise nor what the denoiser learns from."""
    losses = [build(teacher, **switches)(*random_batch(), mode='loss') for switches in ({}, dict(mix=0.0), dict(mix=0.5))]
    torch.testing.assert_close(losses[0], losses[1], rtol=0, atol=0)
    assert losses[2]['loss_dskd_diff'] == losses[0]['loss_dskd_diff']
    assert losses[2]['dskd_cosine_denoised'] > losses[0]['dskd_cosine_denoised']
    assert losses[2]['loss_dskd_lsh'] != losses[0]['loss_dskd_lsh']


def test_a_mix_needs_the_teacher_and_no_diffusion_needs_none(teacher):
    free = dict(target='label', loss_weights=dict(logit=0.0))
    assert not build(teacher, **free).uses_teacher_forward
    assert build(teacher, mix=0.5, **free).uses_teacher_forward
    nothing = dict(logit=0.0, lsh=0.0, virtual=0.0)
    assert not build(teacher, mix=0.5, target='label', loss_weights=nothing).uses_teacher_forward
    with pytest.raises(ValueError, match=r'mix of DSKDDistiller must be between 0 .* but got 1.5'):
        build(teacher, mix=1.5)


def test_a_shift_is_the_guidance_without_the_diffusion(teacher):
    distiller = of_variant(teacher, 'shift')
    z, _, found = denoised(distiller)
    batch, _ = distiller.denoise(*random_batch())
    guidance = batch.guide.guidance('logit', torch.ones(()), None)
    shift = 2.3 * guidance(z)
    assert shift.norm() > 0.05 * z.norm()
    # One step at the first noise level: what the denoiser says there counts for a hundredth of the feature.
    assert (found - z - shift).norm() < 0.01 * z.norm()


def test_no_shift_is_the_students_own_feature(teacher):
    distiller = of_variant(teacher, 'no-shift')
    z, _, found = denoised(distiller)
    assert (found - z).norm() < 0.01 * z.norm()


def test_a_random_shift_is_as_long_as_that_of_the_diffusion_and_leads_elsewhere(teacher):
    z, _, found = denoised(build(teacher))
    _, _, random = denoised(of_variant(teacher, 'random-shift'))
    torch.testing.assert_close((random - z).norm(dim=1), (found - z).norm(dim=1))
    cosine = torch.cosine_similarity(random - z, found - z, dim=1)
    assert cosine.abs().mean() < 0.4 and cosine.mean().abs() < 0.2


def train_diffusion(distiller: nn.Module) -> dict[str, Tensor]:
    """Train the diffusion alone, and return the losses of the last step."""
    torch.manual_seed(0)
    images, samples = random_batch()
    optimizer = torch.optim.Adam(distiller.diffusion.parameters(), lr=0.01)
    for _ in range(40):
        losses = distiller(images, samples, mode='loss')
        optimizer.zero_grad()
        losses['loss_dskd_diff'].backward()
        optimizer.step()
    return losses


def test_under_the_teachers_prior_the_students_feature_is_the_noisy_one(teacher, tmp_path):
    """It is not noised first, and what is denoised is nearer to the teacher, by the feature and by the classifier."""
    distiller = build(teacher, prior='teacher')
    sampler = distiller.diffusion.sampler
    assert (sampler.noise, sampler.steps, sampler.start, sampler.scale) == ('none', 2, 0.2, 20.0)
    losses = train_diffusion(distiller)
    assert losses['dskd_cosine_denoised'] > losses['dskd_cosine_student'] + 0.05
    assert losses['dskd_kl_denoised'] < losses['dskd_kl_student'] and losses['dskd_gate'] > 0.5
    assert build(teacher, prior='teacher', sampler=dict(noise='schedule')).diffusion.sampler.noise == 'schedule'
    config = dense_distiller_config('retinanet', str(tmp_path), prior='teacher')
    dense = build_distiller(config).diffusion.sampler
    assert (dense.noise, dense.start, dense.scale) == ('none', 0.1, 100.0)


def test_a_bridge_leads_to_the_teachers_feature(teacher):
    """It is what the network is trained on, from z; the student's own feature is refused as its end."""
    type_ = dict(type='dskd_mm.FeatureBridge')
    distiller = build(teacher, diffusion=type_, prior='teacher', sampler=dict(steps=1, scale=0.0))
    losses = train_diffusion(distiller)
    assert losses['dskd_noise_error'] < losses['dskd_trivial_error']
    assert losses['dskd_cosine_denoised'] > losses['dskd_cosine_student'] + 0.2
    with pytest.raises(ValueError, match="leads to the teacher's feature: set prior='teacher' instead of 'student'"):
        build(teacher, diffusion=type_)


def test_a_bridge_is_guided_no_farther_than_it_helps(teacher):
    """By its own defaults: those of sampling, added whole in each step, lead far beyond the teacher."""
    distiller = build(teacher, diffusion=dict(type='dskd_mm.FeatureBridge'), prior='teacher')
    assert (distiller.diffusion.sampler.steps, distiller.diffusion.sampler.scale) == (1, 2.3)
    losses = train_diffusion(distiller)
    assert losses['dskd_kl_denoised'] < losses['dskd_kl_student'] and losses['dskd_gate'] > 0.5


def test_the_cosine_is_that_of_what_is_hashed_whatever_its_scale(teacher):
    """Of the averages that are hashed, each channel as it is in the teacher's: neither scale nor offset counts."""
    cosines = []
    for scale, offset in ((1.0, 0.0), (5.0, 3.0)):
        distiller = build(teacher, align=dict(norm=None))
        with torch.no_grad():
            distiller.align.layers[0].weight *= scale
            distiller.align.layers[0].bias += offset
        images, samples = random_batch()
        batch, _ = distiller.denoise(images, samples, with_teacher=True)
        ours, theirs = batch.aligned.mean(dim=2), batch.teacher.features[0].flatten(2).mean(dim=2)
        losses = distiller(images, samples, mode='loss')
        cosines.append(losses['dskd_cosine_student'])
        torch.testing.assert_close(cosines[-1], matched_cosine(ours, theirs), rtol=0, atol=1e-3)
        assert losses['dskd_cosine_denoised'] != losses['dskd_cosine_student']
    torch.testing.assert_close(*cosines, rtol=0, atol=1e-3)


def train_steps(distiller: nn.Module, steps: int) -> None:
    """Train as a runner does."""
    wrapper = OptimWrapper(torch.optim.SGD([p for p in distiller.parameters() if p.requires_grad], lr=0.1))
    inputs, data_samples = random_batch()
    for _ in range(steps):
        distiller.train_step(dict(inputs=inputs, data_samples=data_samples), wrapper)


def test_an_averaged_prior_samples_from_a_running_average_of_the_student(teacher):
    distiller = of_variant(teacher, 'average')
    train_steps(distiller, 3)
    other = copy.deepcopy(distiller)
    with torch.no_grad():
        for parameter in (*other.student.backbone.parameters(), *other.align.parameters()):
            parameter.add_(torch.randn_like(parameter))
    (batch, found), (moved, again) = (
        distiller.denoise(*random_batch(), guided=False),
        other.denoise(*random_batch(), guided=False),
    )
    assert (batch.aligned - moved.aligned).abs().max() > 0.1
    torch.testing.assert_close(found, again)


def test_the_average_follows_the_student(teacher):
    distiller = of_variant(teacher, 'average')
    before = [value.clone() for value in distiller.average.module.parameters()]
    train_steps(distiller, 1)
    first = [value.clone() for value in distiller._networks.parameters()]
    train_steps(distiller, 1)
    expected = [0.99 * old + 0.01 * new for old, new in zip(first, distiller._networks.parameters(), strict=True)]
    assert any((old != new).any() for old, new in zip(before, first, strict=True))
    torch.testing.assert_close(list(distiller.average.module.parameters()), expected)


def test_a_fading_anchor_fades_with_the_training_and_the_hash_does_not(teacher):
    """After three quarters of the steps a quarter of it is left."""
    messages = MessageHub.get_instance('fading')
    found = {}
    for name in ('no-virtual', 'fading'):
        distiller = of_variant(teacher, name)
        distiller.iteration.fill_(30)
        with patch.object(MessageHub, 'get_current_instance', lambda: messages):
            messages.update_info('max_iters', 40)
            found[name] = distiller(*random_batch(), mode='loss')
    whole, fading = found.values()
    torch.testing.assert_close(fading['loss_dskd_anchor'], 0.25 * whole['loss_dskd_anchor'])
    torch.testing.assert_close(fading['loss_dskd_lsh'], whole['loss_dskd_lsh'])
