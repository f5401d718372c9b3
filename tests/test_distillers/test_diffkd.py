"""DiffKD: its losses against a straight-line computation, its size, and training at every site."""

import math

import pytest
import torch
from rival_checks import assert_behaves, assert_survives_nothing, needs_mmdet, needs_mmseg, rival_config
from torch import nn

from dskd_mm.distillers.diffkd import DenoisedPair
from dskd_mm.structures import ModelOutputs, Target
from support import assert_refused, build_distiller, dense_distiller_config

METHOD = 'DiffKDDistiller'
LATENT = dict(feature=dict(autoencoder=dict(latent_channels=6)), logits=dict())
TABLE = []
for _i in range(1000):
    TABLE.append((TABLE[-1] if TABLE else 1.0) * (1 - (1e-4 + (0.02 - 1e-4) * _i / 999)))


def no_head_loss(maps):
    raise AssertionError('DiffKD asks no head')


# ---------------------------------------------------------------------------------------- a straight line


def straight_line(pair, ours, theirs, generator):
    """One pair of one level, written down once more: what is denoised, what it should be, the losses beside."""
    z, wanted, reconstruction = pair.align.layers[0](ours), theirs, None
    if pair.diffusion.autoencoder is not None:
        hidden = pair.diffusion.autoencoder.encoder(theirs)
        reconstruction = ((pair.diffusion.autoencoder.decoder(hidden) - theirs) ** 2).mean()
        wanted = hidden.detach()
    t = torch.randint(1000, (len(z),), generator=generator)
    noise = torch.randn(wanted.shape, generator=generator)
    a = torch.tensor([TABLE[i] for i in t.tolist()])[:, None, None, None]
    predicted = pair.diffusion.denoiser(a.sqrt() * wanted + (1 - a).sqrt() * noise, t)
    diff = ((predicted - noise) ** 2).mean()

    adapter = pair.diffusion.noise_adapter
    scores = adapter.fc(adapter.features(z).mean(dim=(2, 3)))
    gamma = torch.exp(scores[:, 0]) / torch.exp(scores).sum(dim=1)
    gamma = gamma[:, None, None, None]
    x = gamma * z + (1 - gamma) * torch.randn(z.shape, generator=generator)
    for t in (400, 300, 200, 100, 0):
        epsilon = pair.diffusion.denoiser(x, t)
        clean = (x - math.sqrt(1 - TABLE[t]) * epsilon) / math.sqrt(TABLE[t])
        following = TABLE[t - 100] if t else 1.0
        x = math.sqrt(following) * clean + math.sqrt(1 - following) * epsilon
    convolution, norm = pair.output.layers
    assert isinstance(norm, nn.BatchNorm2d)
    return norm(convolution(x)), wanted, diff, reconstruction, gamma.mean()


@pytest.mark.parametrize('pairs', [None, LATENT], ids=['plain', 'autoencoder'])
def test_losses_of_classification_are_the_straight_line(tmp_path, monkeypatch, pairs):
    distiller = build_distiller(rival_config(METHOD, 'gap', tmp_path, pairs=pairs))
    monkeypatch.setattr(distiller, 'noise_generator', lambda device: torch.Generator(device).manual_seed(11))
    torch.manual_seed(0)
    seen = [torch.randn(4, 16, 3, 2, requires_grad=True), torch.randn(4, 5, requires_grad=True)]
    shown = [torch.randn(4, 24, 3, 2), 2 * torch.randn(4, 5)]
    target = Target(torch.eye(5)[:4])
    found = distiller.distill(ModelOutputs([seen[0]], [seen[1]]), ModelOutputs([shown[0]], [shown[1]]), target, no_head_loss)

    generator = torch.Generator().manual_seed(11)
    expected = {}
    for name, ours, theirs in zip(('feature', 'logits'), seen, shown, strict=True):
        maps = [side if side.ndim == 4 else side[:, :, None, None] for side in (ours, theirs)]
        refined, wanted, diff, reconstruction, gamma = straight_line(distiller.pairs[name], *maps, generator)
        if name == 'feature':
            kd = ((refined - wanted) ** 2).mean()
        else:
            p = torch.exp(theirs) / torch.exp(theirs).sum(dim=1, keepdim=True)
            q = torch.exp(refined[:, :, 0, 0]) / torch.exp(refined[:, :, 0, 0]).sum(dim=1, keepdim=True)
            kd = (p * (p / q).log()).sum() / 4
        expected |= {f'loss_diffkd_{name}_kd': kd, f'loss_diffkd_{name}_diff': diff, f'diffkd_{name}_gamma': gamma}
        if reconstruction is not None:
            expected[f'loss_diffkd_{name}_autoencoder'] = reconstruction
    assert set(found) == set(expected)
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-5, msg=name)

    # Through all five steps: the same gradient by the student's own tensors as by the line.
    for name, side in zip(('feature', 'logits'), seen, strict=True):
        ours, line = (torch.autograd.grad(which[f'loss_diffkd_{name}_kd'], side)[0] for which in (found, expected))
        torch.testing.assert_close(ours, line, rtol=1e-2, atol=1e-5)
        assert ours.abs().max() > 0


def test_levels_share_a_denoiser_and_their_losses_are_summed():
    torch.manual_seed(0)
    pair = DenoisedPair(4, 6, norm='GN')
    levels = [torch.randn(2, 4, 4, 6), torch.randn(2, 4, 2, 3)]
    wanted = [torch.randn(2, 6, 4, 6), torch.randn(2, 6, 2, 3)]
    refined, clean, found = pair(levels, wanted, torch.Generator().manual_seed(5))
    assert [level.shape for level in refined] == [level.shape for level in wanted]
    assert all(torch.equal(*both) for both in zip(clean, wanted, strict=True))
    generator = torch.Generator().manual_seed(5)
    t = torch.randint(1000, (2,), generator=generator)
    a = torch.tensor([TABLE[i] for i in t.tolist()])[:, None, None, None]
    diff = 0.0
    for level in wanted:
        noise = torch.randn(level.shape, generator=generator)
        diff = diff + ((pair.diffusion.denoiser(a.sqrt() * level + (1 - a).sqrt() * noise, t) - noise) ** 2).mean()
    torch.testing.assert_close(found['diff'], diff)


def test_pair_has_the_networks_of_the_paper():
    """At 256 channels a denoiser of 0.205 M parameters, its norms' affine ones and embedding aside; five steps from 400."""
    pair = DenoisedPair(64, 256)
    sizes = [
        sum(p.numel() for p in m.parameters()) for m in pair.diffusion.denoiser.layers.modules() if isinstance(m, nn.Conv2d)
    ]
    assert sum(sizes) == 204_800
    assert pair.diffusion.denoiser.time_embedding.weight.shape == (1280, 256)
    assert pair.diffusion.schedule.timesteps(pair.diffusion.sampler.steps, pair.diffusion.sampler.start) == [
        400,
        300,
        200,
        100,
        0,
    ]
    assert (
        pair.diffusion.sampler.noise == 'adapter' and pair.diffusion.noise_adapter.features.layers[0].out_channels == 256 // 8
    )
    (phi, norm) = pair.align.layers
    assert phi.kernel_size == (1, 1) and phi.bias is not None and isinstance(norm, nn.Identity)


def test_another_start_needs_no_adapter_and_a_long_schedule_gets_its_embeddings():
    pair = DenoisedPair(4, 4, sampler=dict(noise='schedule', steps=2), schedule=dict(num_train_steps=2000))
    assert pair.diffusion.noise_adapter is None and pair.diffusion.denoiser.time_embedding.num_embeddings == 2000
    _, _, found = pair([torch.randn(2, 4, 3, 3)], [torch.randn(2, 4, 3, 3)], torch.Generator())
    assert set(found) == {'diff'}


def test_no_proposals_give_zeros_in_the_graph():
    pair = DenoisedPair(4, 6, kernel_size=1)
    (refined,), _, found = pair([torch.zeros(0, 4, 1, 1)], [torch.zeros(0, 6, 1, 1)], torch.Generator())
    assert refined.shape == (0, 6, 1, 1) and found['diff'] == 0 and found['gamma'] == 0
    (refined.sum() + found['diff']).backward()
    assert all(p.grad is not None and not p.grad.any() for p in pair.parameters())
    assert all(torch.isfinite(buffer).all() for buffer in pair.buffers())


# ------------------------------------------------------------------------------------------- at every site

BOTH = {'_feature_kd', '_feature_diff', '_feature_gamma', '_logits_kd', '_logits_diff', '_logits_gamma'}
FEATURE = {name for name in BOTH if 'feature' in name}
LOGITS = BOTH - FEATURE
DENSE, TWO_STAGE = (dict(type=f'dskd_mm.{name}DetectionSite') for name in ('Dense', 'TwoStage'))


@pytest.mark.parametrize(
    ('kind', 'switches', 'names', 'kernels'),
    [
        ('gap', {}, BOTH, dict(feature=3, logits=1)),
        ('gap', dict(pairs=LATENT), BOTH | {'_feature_autoencoder'}, dict(feature=3, logits=1)),
        ('vit', {}, BOTH, dict(feature=1, logits=1)),
        ('multi_label', {}, BOTH, dict(feature=3, logits=1)),
        pytest.param('fcn', {}, LOGITS, dict(logits=3), marks=needs_mmseg),
        pytest.param('binary', {}, LOGITS, dict(logits=3), marks=needs_mmseg),
        pytest.param('retinanet', {}, FEATURE, dict(feature=3), marks=needs_mmdet),
        pytest.param('retinanet', dict(site=DENSE), FEATURE, dict(feature=3), marks=needs_mmdet),
        pytest.param('faster_rcnn', dict(site=TWO_STAGE), FEATURE, dict(feature=1), marks=needs_mmdet),
    ],
)
def test_it_trains_and_resumes_at_every_site(tmp_path, kind, switches, names, kernels):
    config = rival_config(METHOD, kind, tmp_path, **switches)
    distiller = assert_behaves(config, kind, 'diffkd', names, ('_diff', '_autoencoder'))
    assert {name: kernel_size(pair) for name, pair in distiller.pairs.items()} == kernels
    weight = 5.0 if kind in ('retinanet', 'faster_rcnn') else 1.0
    for name in kernels:
        assert distiller.loss_weights[name] == dict(diff=weight, autoencoder=weight, kd=weight)


def test_a_layer_has_neighbours_where_the_sites_feature_has_none(tmp_path):
    """As in a vision transformer whose patches are tapped beside its class token."""
    path = 'backbone.patch_embed.projection'
    layers = dict(patches={owner: dict(path=path, channels=c) for owner, c in (('student', 16), ('teacher', 24))})
    config = rival_config(METHOD, 'vit', tmp_path, layers=layers, pairs=dict(patches={}, feature={}))
    names = {f'_{pair}_{part}' for pair in ('patches', 'feature') for part in ('kd', 'diff', 'gamma')}
    distiller = assert_behaves(config, 'vit', 'diffkd', names, ('_diff',))
    assert {name: kernel_size(pair) for name, pair in distiller.pairs.items()} == dict(patches=3, feature=1)
    with pytest.raises(ValueError, match=r"pairs.m of DiffKDDistiller reads 'm'.*only 'feature', 'logits', 'patches'.*layers"):
        build_distiller(rival_config(METHOD, 'vit', tmp_path, layers=layers, pairs=dict(m={})))


def kernel_size(pair):
    """Of the widest convolution in its denoiser."""
    return max(m.kernel_size[0] for m in pair.diffusion.denoiser.modules() if isinstance(m, nn.Conv2d))


@needs_mmseg
@pytest.mark.parametrize(('kind', 'classes', 'loss'), [('binary', 2, 'KDLoss'), ('fcn', 2, 'DISTLoss'), ('fcn', 3, 'DISTLoss')])
def test_class_maps_are_compared_by_dist_if_there_are_several(tmp_path, kind, classes, loss):
    both = dict(student=dict(num_classes=classes), teacher=dict(num_classes=classes))
    config = dense_distiller_config(kind, str(tmp_path), **both).copy()
    config.type = f'dskd_mm.{METHOD}'
    assert type(build_distiller(config).distances['logits']).__name__ == loss


@needs_mmseg
def test_class_maps_keep_their_height_and_width(tmp_path, monkeypatch):
    distiller = build_distiller(rival_config(METHOD, 'fcn', tmp_path))
    features, logits = torch.randn(2, 8, 4, 6), torch.randn(2, 3, 4, 6)
    seen = []
    monkeypatch.setattr(distiller.pairs['logits'], 'forward', lambda ours, theirs, g: seen.append((ours, theirs)) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        distiller.distill(ModelOutputs([features], [logits]), ModelOutputs([features], [2 * logits]), None, no_head_loss)
    ((ours, theirs),) = seen
    assert torch.equal(ours[0], logits) and torch.equal(theirs[0], 2 * logits)


@pytest.mark.parametrize('kind', [pytest.param('retinanet', marks=needs_mmdet), pytest.param('fcn', marks=needs_mmseg)])
def test_images_without_annotations(tmp_path, kind):
    losses = assert_survives_nothing(rival_config(METHOD, kind, tmp_path), kind, 'diffkd')
    assert kind == 'retinanet' or losses['loss_diffkd_logits_kd'] == 0


@pytest.mark.parametrize(
    ('kind', 'pairs', 'words'),
    [
        ('gap', {}, ['at least one pair']),
        ('gap', dict(neck={}), ["'neck'", "'feature', 'logits'", 'layers']),
        ('gap', dict(feature=dict(distance='kl')), ["'feature'", "'mse'", "'kl'"]),
        ('gap', dict(logits=dict(distance='cosine')), ["'cosine'"]),
        ('gap', dict(logits=dict(autoencoder=dict(latent_channels=2))), ['without an autoencoder']),
        ('gap', dict(logits=dict(distance=dict(type='dskd_mm.LSHDistillLoss', in_channels=5))), ['LogitLoss']),
        ('gap', dict(feature=dict(loss_weights=dict(ae=1.0))), ["'autoencoder'", "'ae'"]),
        ('gap', dict(feature=dict(sampler=dict(steps=600))), ['do not fit']),
        ('gap', dict(feature=dict(denoiser=dict(num_embeddings=500))), ['embeds 500 timesteps', 'the schedule has 1000']),
        pytest.param('retinanet', dict(logits={}), ["'logits'", "only 'feature'"], marks=needs_mmdet),
    ],
)
def test_what_has_no_meaning_is_refused(tmp_path, kind, pairs, words):
    assert_refused(rival_config(METHOD, kind, tmp_path), lambda config: config.update(pairs=pairs), words)


def test_checkpoints_from_before_the_diffusion_had_a_module_load(tmp_path):
    pairs = dict(feature=dict(autoencoder=dict(latent_channels=6)), logits=dict())
    config = rival_config(METHOD, 'gap', tmp_path, pairs=pairs)
    state = build_distiller(config).state_dict()
    old = {key.replace('.diffusion.', '.'): value for key, value in state.items()}
    assert set(old) != set(state)
    other = build_distiller(config)
    other.load_state_dict(old)
    assert all(torch.equal(value, state[key]) for key, value in other.state_dict().items())
