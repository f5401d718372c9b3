"""DSKD's losses against a straight-line computation, and every switch on real models."""

import copy
import math
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn import functional as F

from dskd_mm.diffusion import TeacherGuidedSampler
from dskd_mm.distillers.dskd_options import TASK_DEFAULTS, DSKDOptions
from dskd_mm.features import Pyramid, match_levels
from dskd_mm.functional import hit_rate
from dskd_mm.guidance import ClassifierGuide
from dskd_mm.losses import DISTLoss, DKDLoss, KDLoss
from dskd_mm.sites import ClassificationSite
from dskd_mm.structures import ModelOutputs, Target
from dskd_mm.testing import TOY_KINDS, classifier_config, random_batch, random_teacher
from support import FIRST_CONSTRUCTION, matched_cosine

CLASSES = 5
HEALTH = ('noise_error', 'trivial_error', 'kl_student', 'kl_denoised', 'cosine_student', 'cosine_denoised', 'gate')


@pytest.fixture(scope='module')
def teachers(tmp_path_factory) -> dict[str, dict]:
    """A random teacher of each kind."""
    return {kind: random_teacher(str(tmp_path_factory.mktemp(kind)), kind=kind) for kind in TOY_KINDS}


def build(student: str, teacher: dict, **switches) -> nn.Module:
    """A distiller with random weights in training mode."""
    torch.manual_seed(0)
    config = dict(student=classifier_config(student), teacher=teacher, noise_seed=7, **switches)
    return MODELS.build(dict(type='dskd_mm.DSKDDistiller', **config)).train()


def step(distiller: nn.Module, multi_label: bool = False, batch: int = 4) -> dict[str, Tensor]:
    """Losses of a random batch, with gradients."""
    images, samples = random_batch(batch, multi_label=multi_label)
    losses = distiller(images, samples, mode='loss')
    distiller.parse_losses(losses)[0].backward()
    return losses


def assert_trains(distiller: nn.Module, losses: dict[str, Tensor]) -> None:
    """All losses are finite and every parameter got a gradient, as distributed training demands."""
    assert all(torch.isfinite(value).all() for value in losses.values()), losses
    without = [name for name, p in distiller.named_parameters() if p.grad is None]
    assert not without, f'no gradient: {without}'
    assert all(torch.isfinite(p.grad).all() for p in distiller.parameters())
    names = [name for name, p in distiller.student.named_parameters() if p.grad.abs().max() > 0]
    assert names, 'the student learns nothing'


# ----------------------------------------------------------------------------------------- a straight line


def softmax(logits: Tensor, temperature: float = 1.0) -> Tensor:
    return torch.exp(logits / temperature) / torch.exp(logits / temperature).sum(dim=1, keepdim=True)


def divergence(q: Tensor, logits: Tensor, temperature: float) -> Tensor:
    """T^2 KL(q || softmax(logits / T)), averaged over images."""
    p = softmax(logits, temperature)
    entropy_part = torch.where(q > 0, q * q.clamp(min=1e-30).log(), torch.zeros_like(q))
    return (entropy_part - q * p.log()).sum() / len(q) * temperature**2


def decoupled_divergence(theirs: Tensor, ours: Tensor, labels: Tensor, temperature: float, beta: float) -> Tensor:
    """T^2 (KL of true class or not + beta KL among the others), averaged over images."""
    total = torch.zeros(())
    for q, p, label in zip(softmax(theirs, temperature), softmax(ours, temperature), labels.tolist(), strict=True):
        total = total + q[label] * (q[label] / p[label]).log() + (1 - q[label]) * ((1 - q[label]) / (1 - p[label])).log()
        for k in range(CLASSES):
            if k != label:
                a, b = q[k] / (1 - q[label]), p[k] / (1 - p[label])
                total = total + beta * a * (a / b).log()
    return total / len(labels) * temperature**2


def steps_of(mended: bool) -> tuple[int, ...]:
    return (100, 0) if mended else (400, 300, 200, 100, 0)


def straight_line(
    distiller: nn.Module,
    feature: Tensor,
    logits: Tensor,
    labels: Tensor,
    teacher_feature: Tensor,
    teacher_logits: Tensor,
    prior: str,
    target: str,
    unit: str,
    point: str,
    scale: float,
    decoupled: bool,
    mended: bool = False,
) -> dict[str, Tensor]:
    """The terms of DSKD written down once more, from section 1 of the method to its end; its first construction, or today's."""
    (classifier,) = distiller.teacher.classifiers
    weight, bias = classifier.weight, classifier.bias
    temperature = 4.0
    z = distiller.align(feature)
    one_hot = torch.eye(CLASSES)[labels]
    seen_by_teacher = F.interpolate(teacher_feature, size=z.shape[2:], mode='bilinear')

    def pooled(x: Tensor) -> Tensor:
        """(B, K)."""
        return x.mean(dim=(2, 3)) @ weight.T + bias

    def at_locations(x: Tensor) -> Tensor:
        """(B * H * W, K)."""
        return x.permute(0, 2, 3, 1).flatten(0, 2) @ weight.T + bias

    def imitate(theirs: Tensor, ours: Tensor) -> Tensor:
        if decoupled:
            true = labels.repeat_interleave(len(ours) // len(labels))
            return decoupled_divergence(theirs, ours, true, temperature, CLASSES / 10)
        return divergence(softmax(theirs, temperature), ours, temperature)

    classify = at_locations if target == 'local' else pooled
    opinion = dict(label=None, soft=teacher_logits, local=at_locations(seen_by_teacher))[target]
    softness = temperature if mended and opinion is not None else 1.0
    guide = one_hot if opinion is None else softmax(opinion, softness)
    if opinion is None:
        anchor = divergence(one_hot, classify(z), 1.0)
    else:
        anchor = imitate(opinion, classify(z))
    expected = dict(anchor=anchor, logit=imitate(teacher_logits, logits))

    # Each channel of the teacher, brought to the student's mean and deviation.
    same = torch.empty_like(z)
    for c in range(z.shape[1]):
        mean, deviation, theirs = z[:, c].mean(), z[:, c].std(unbiased=False), seen_by_teacher[:, c]
        same[:, c] = mean + deviation * (theirs - theirs.mean()) / theirs.std(unbiased=False)
    same = same.detach()
    clean = z.detach() if prior == 'student' else same
    std = clean.std()
    alpha, product = [], 1.0
    for i in range(1000):
        product *= 1 - (1e-4 + (0.02 - 1e-4) * i / 999)
        alpha.append(product)

    generator = torch.Generator().manual_seed(11)
    t = torch.randint(1000, (len(z),), generator=generator)
    noise = torch.randn(z.shape, generator=generator)
    a = torch.tensor([alpha[i] for i in t.tolist()])[:, None, None, None]
    predicted = distiller.diffusion.denoiser(a.sqrt() * clean / std + (1 - a).sqrt() * noise, t)
    expected['diff'] = expected['noise_error'] = ((predicted - noise) ** 2).mean()
    # The filter that takes a feature for noise: sigma x - noise = sigma s x_0 - s^2 noise.
    power = float((clean / std).square().mean())
    expected['trivial_error'] = torch.tensor(sum(a * (1 - a) * power + a * a for a in alpha) / 1000)

    x, steps = z.detach() / std, steps_of(mended)
    first = alpha[steps[0]]
    if not mended or prior == 'student':  # else z itself is the noisy one
        x = math.sqrt(first) * x + math.sqrt(1 - first) * torch.randn(z.shape, generator=generator)
    batch, channels, height, width = z.shape
    for t, later in zip(steps, (*steps[1:], None), strict=True):
        with torch.no_grad():
            epsilon = distiller.diffusion.denoiser(x, t)
        root, sigma = math.sqrt(alpha[t]), math.sqrt(1 - alpha[t])
        seen = x if point == 'noisy' else (x - sigma * epsilon) / root
        step_by_logit = (guide - softmax(classify(seen * std), softness)) @ weight / softness
        if unit == 'logit':
            # By the mean squared norm of the classes' weights, without the pooling's 1 / HW; the classifier sees std x.
            g = step_by_logit * softness**2 / (weight**2).sum(dim=1).mean() / std
        else:
            g = step_by_logit * std / (1 if target == 'local' else height * width)
        if target == 'local':
            g = g.reshape(batch, height, width, channels).permute(0, 3, 1, 2)
        else:
            g = g[:, :, None, None]
        if point == 'clean':
            g = g / root
        epsilon = epsilon - sigma * scale * g
        x_0 = (x - sigma * epsilon) / root
        x = x_0 if later is None else math.sqrt(alpha[later]) * x_0 + math.sqrt(1 - alpha[later]) * epsilon
    denoised = x * std

    wanted = one_hot if opinion is None else softmax(opinion)
    far = []
    for name, v in (('student', z.detach()), ('denoised', denoised)):
        gaps = torch.zeros(len(z))
        for row, (q, p) in enumerate(zip(wanted, softmax(classify(v)), strict=True)):
            image = row // (height * width) if target == 'local' and opinion is not None else row
            gaps[image] += sum(float(a * (a / b).log()) for a, b in zip(q, p, strict=True) if a > 0)
        far.append(gaps)
        expected[f'kl_{name}'] = gaps.sum() / len(wanted)
        expected[f'cosine_{name}'] = matched_cosine(v.mean(dim=(2, 3)), seen_by_teacher.mean(dim=(2, 3)))
    gate = (far[1] <= far[0]).float()
    expected['gate'] = gate.mean()

    counts = gate if mended else torch.ones(len(z))
    each = [
        divergence(softmax(pooled(denoised), temperature)[i : i + 1], logits[i : i + 1], temperature) for i in range(len(z))
    ]
    expected['virtual'] = (torch.stack(each) * counts).mean()
    vectors = [v.mean(dim=(2, 3)) for v in (z, denoised)]
    if mended:
        center = (vectors[1] * counts[:, None]).sum(dim=0) / counts.sum().clamp(min=1)
        a, b = (F.normalize(v - center, dim=1) @ distiller.lsh.projection.T for v in vectors)
        h = torch.sigmoid(b)
        # Divergence of the probabilities that the bits are 1.
        p = torch.sigmoid(a)
        apart = h * (h / p).log() + (1 - h) * ((1 - h) / (1 - p)).log()
        agree = (a > 0) == (b > 0)
    else:
        a, b = (
            v @ (distiller.lsh.projection * weight.std()).T
            - vectors[1].mean(dim=0) @ (distiller.lsh.projection * weight.std()).T
            for v in vectors
        )
        apart = F.binary_cross_entropy_with_logits(a, (b > 0).float(), reduction='none')
        agree = (a > 0) == (b > 0)
    # What does not teach is no less in the mean than what does.
    expected['lsh'] = (apart.float().mean(dim=1) * counts).mean()
    expected['bits'] = (agree.float().mean(dim=1) * counts).sum() / counts.sum().clamp(min=1)
    if mended and counts.sum():
        gradients = (torch.autograd.grad(expected[name], z, retain_graph=True)[0] for name in ('anchor', 'lsh'))
        # Of images that do not teach neither has any.
        theirs, own = ((gradient * counts[:, None, None, None]).norm() for gradient in gradients)
        expected['lsh'] = expected['lsh'] * 0.3 * distiller.options.loss_weights['anchor'] * theirs / own
    expected['acc_start'] = (pooled(z).argmax(dim=1) == labels).float().mean()
    expected['acc_denoised'] = (pooled(denoised).argmax(dim=1) == labels).float().mean()
    expected['std'] = std
    return expected


def no_head_loss(maps: Sequence[Tensor]) -> Tensor:
    raise AssertionError('a linear classifier guides, not a head')


@pytest.mark.parametrize('prior', ['student', 'teacher'])
@pytest.mark.parametrize('target', ['label', 'soft', 'local'])
@pytest.mark.parametrize(('unit', 'point', 'scale'), [('logit', 'noisy', 1.0), ('gradient', 'clean', 30.0)])
@pytest.mark.parametrize('decoupled', [True, False])
def test_every_term_is_the_straight_line(teachers, monkeypatch, prior, target, unit, point, scale, decoupled):
    check_straight_line(teachers, monkeypatch, prior, target, unit, point, scale, decoupled, mended=False)


@pytest.mark.parametrize('prior', ['student', 'teacher'])
@pytest.mark.parametrize('target', ['label', 'soft', 'local'])
@pytest.mark.parametrize(('unit', 'scale'), [('logit', 20.0), ('logit', 0.0), ('gradient', 30.0)])
def test_every_term_of_the_defaults_is_the_straight_line(teachers, monkeypatch, prior, target, unit, scale):
    gate = check_straight_line(teachers, monkeypatch, prior, target, unit, 'clean', scale, True, mended=True)
    if unit == 'logit':
        assert gate == 1 if scale else gate < 1


def check_straight_line(teachers, monkeypatch, prior, target, unit, point, scale, decoupled, mended) -> float:
    weights = dict(diff=0.5, lsh=2.0, anchor=3.0, virtual=0.7, logit=1.5)
    construction: dict = {} if mended else copy.deepcopy(FIRST_CONSTRUCTION)
    construction['sampler'] = construction.get('sampler', {}) | dict(guidance_point=point, scale=scale)
    distiller = build(
        'gap',
        teachers['gap'],
        prior=prior,
        target=target,
        guidance_unit=unit,
        loss_weights=weights,
        imitation=None if decoupled else dict(type='dskd_mm.KDLoss'),
        warmup=0,
        **construction,
    )
    distiller.load_teacher()
    if mended:  # or it would predict no more than at the start
        nn.init.normal_(distiller.diffusion.denoiser.output.weight, std=0.1)
    monkeypatch.setattr(distiller, 'noise_generator', lambda device, *key: torch.Generator(device).manual_seed(11))
    torch.manual_seed(1)
    feature, teacher_feature = torch.randn(4, 16, 4, 4, requires_grad=True), torch.randn(4, 24, 2, 2)
    logits, teacher_logits = torch.randn(4, CLASSES, requires_grad=True), 3 * torch.randn(4, CLASSES)
    samples = random_batch()[1]
    labels = torch.cat([sample.gt_label for sample in samples])
    # The norms see the same batches in the same order: all in training mode, by the batch's own statistics.
    expected = straight_line(
        distiller,
        feature,
        logits,
        labels,
        teacher_feature,
        teacher_logits,
        prior,
        target,
        unit,
        point,
        scale,
        decoupled,
        mended,
    )
    student = ModelOutputs([feature], [logits])
    teacher = ModelOutputs(match_levels([teacher_feature], [feature]), [teacher_logits])
    annotations = distiller.site.target(SimpleNamespace(logits=[logits]), samples, CLASSES, False)
    losses = distiller.distill(student, teacher, annotations, no_head_loss)

    assert set(losses) == {f'loss_dskd_{name}' for name in weights} | {
        f'dskd_{name}' for name in ('bits', 'acc_start', 'acc_denoised', 'std', *HEALTH)
    }
    for name, value in losses.items():
        if name.startswith('loss_dskd_'):
            name = name.removeprefix('loss_dskd_')
            torch.testing.assert_close(value, weights[name] * expected[name], rtol=1e-3, atol=1e-4, msg=name)
        else:
            torch.testing.assert_close(value, expected[name.removeprefix('dskd_')], rtol=1e-3, atol=0.01, msg=name)

    # What each term trains: only diff the denoiser, neither the denoised feature nor the teacher has a gradient.
    for name, trained in dict(anchor='align', lsh='align', diff='diffusion.denoiser', virtual='logits', logit='logits').items():
        distiller.zero_grad()
        feature.grad = logits.grad = None
        losses[f'loss_dskd_{name}'].backward(retain_graph=True)
        got = {
            part
            for part in ('align', 'diffusion.denoiser')
            for p in distiller.get_submodule(part).parameters()
            if p.grad is not None and p.grad.abs().max() > 0
        }
        if logits.grad is not None and logits.grad.abs().max() > 0:
            got.add('logits')
        closed = name in ('lsh', 'virtual') and mended and expected['gate'] == 0
        assert got == (set() if closed else {trained}), name
    return float(expected['gate'])


@pytest.mark.parametrize(('own', 'others'), [('gap', 'gap'), ('vit', 'vit'), ('vit', 'gap')])
@pytest.mark.parametrize('switches', [dict(), dict(prior='teacher', target='label')], ids=['defaults', 'teacher prior'])
def test_a_step_shows_the_distillation_what_the_models_made_of_the_images(teachers, monkeypatch, own, others, switches):
    distiller = build(own, teachers[others], **switches)
    shown: list = []

    def distill(*args) -> dict[str, Tensor]:
        shown.extend(args)
        return {}

    monkeypatch.setattr(distiller, 'distill', distill)
    images, samples = random_batch()
    distiller.eval()  # or the norms and the dropout would make a difference between two passes
    distiller(images, samples, mode='loss')
    student, teacher, target, head_loss = shown
    for seen, model, kind in ((student, distiller.student, own), (teacher, distiller.teacher.model, others)):
        entered: list[Tensor] = []
        module = model.get_submodule(dict(gap='neck', vit='head.layers.head')[kind])
        handle = module.register_forward_pre_hook(
            lambda module, args, entered=entered: entered.append(args[0][-1] if isinstance(args[0], tuple) else args[0])
        )
        logits = model(images)
        handle.remove()
        ((feature,), (expected,)) = seen.features, entered
        expected = expected if expected.ndim == 4 else expected[:, :, None, None]
        # A teacher's is resized to the student's: maps are averaged for a student of vectors.
        size = student.features[0].shape[2:]
        torch.testing.assert_close(feature, F.adaptive_avg_pool2d(expected, size) if seen is teacher else expected)
        torch.testing.assert_close(seen.logits, logits)
        assert seen.logits.requires_grad == feature.requires_grad == (seen is student)
    labels = torch.cat([sample.gt_label for sample in samples])
    assert torch.equal(target.probability, torch.eye(CLASSES)[labels])
    with pytest.raises(TypeError, match='guides by a linear classifier'):
        head_loss([feature])


def test_levels_of_a_teacher_are_resized_to_those_of_the_student():
    like = [torch.zeros(2, 3, 4, 6), torch.zeros(2, 3, 2, 3), torch.zeros(2, 3, 1, 1)]
    maps = [torch.randn(2, 5, 2, 3), torch.randn(2, 5, 4, 6).half(), torch.randn(2, 5, 1, 1)]
    same, averaged, kept = match_levels(maps, like, by_size=False)
    torch.testing.assert_close(same, F.interpolate(maps[0], size=(4, 6), mode='bilinear'))
    torch.testing.assert_close(averaged, maps[1].float().unflatten(2, (2, 2)).unflatten(4, (3, 2)).mean(dim=(3, 5)))
    assert averaged.dtype == torch.float32
    assert torch.equal(kept, maps[2])
    vectors = [torch.randn(2, 5)]
    assert torch.equal(match_levels(vectors, [torch.zeros(2, 5)])[0], vectors[0])
    with pytest.raises(ValueError, match='teacher has 3 levels, the student 2'):
        match_levels(maps, like[:2])


def test_distillation_alone_leaves_the_students_own_losses_as_they_are(teachers):
    distiller = build('gap', teachers['gap'])
    images, samples = random_batch()
    losses = distiller(images, samples, mode='loss')
    own = distiller.student(images, samples, mode='loss')
    assert own.keys() == {name for name in losses if 'loss' in name and 'dskd' not in name}
    torch.testing.assert_close({name: losses[name] for name in own}, own)


@pytest.mark.parametrize('mode', ['tensor', 'predict'])
def test_predictions_are_the_students(teachers, mode):
    distiller = build('gap', dict(config=teachers['gap']['config'], checkpoint='/nowhere.pth')).eval()
    images, _ = random_batch()
    ours, own = distiller(images, mode=mode), distiller.student(images, mode=mode)
    if mode == 'predict':
        ours, own = ([sample.pred_score for sample in samples] for samples in (ours, own))
    torch.testing.assert_close(ours, own)
    assert not distiller.teacher.is_loaded


def test_a_copy_made_before_the_teacher_was_loaded_distils_alike(teachers):
    """As of EMA: copies share the teacher, and the one that comes second finds it loaded."""
    distiller = build('gap', teachers['gap'])
    twin = copy.deepcopy(distiller)
    first, second = step(distiller), step(twin)
    assert distiller.teacher is twin.teacher
    assert twin.teacher_spec == distiller.teacher_spec and torch.equal(twin.lsh.std, distiller.lsh.std)
    torch.testing.assert_close(second, first)


# ------------------------------------------------------------------------------------------- real models


@pytest.mark.parametrize('kind', TOY_KINDS)
@pytest.mark.parametrize('prior', ['student', 'teacher'])
def test_every_family_of_classifier_trains(teachers, kind, prior):
    distiller = build(kind, teachers[kind], prior=prior)
    assert_trains(distiller, step(distiller, multi_label=kind == 'multi_label'))
    is_map = distiller.student_spec.is_map
    kernels = {layer.kernel_size for layer in distiller.diffusion.denoiser.modules() if isinstance(layer, nn.Conv2d)}
    assert ((3, 3) in kernels) == is_map


@pytest.mark.parametrize(('student', 'teacher'), [('gap', 'vit'), ('vit', 'gap'), ('swin', 'stacked'), ('stacked', 'swin')])
@pytest.mark.parametrize('prior', ['student', 'teacher'])
@pytest.mark.parametrize('target', ['soft', 'local'])
def test_maps_learn_from_vectors_and_vectors_from_maps(teachers, student, teacher, prior, target):
    distiller = build(student, teachers[teacher], prior=prior, target=target)
    assert_trains(distiller, step(distiller))


@pytest.mark.parametrize('kind', ['gap', 'vit'])
def test_mixed_labels_train(teachers, kind):
    distiller = build(kind, teachers[kind], target='label')
    images, samples = random_batch()
    for sample in samples:
        sample.set_gt_score(torch.tensor([0.3, 0.0, 0.7, 0.0, 0.0]))
    losses = distiller(images, samples, mode='loss')
    distiller.parse_losses(losses)[0].backward()
    assert_trains(distiller, losses)


SWITCHES = {
    'defaults': dict(),
    'student prior': dict(prior='student'),
    'teacher prior': dict(prior='teacher'),
    'from the teacher, without a fixed target': dict(mix=0.7, detach=False),
    'from the teacher, with an autoencoder': dict(mix=0.5, autoencoder=dict(latent_channels=8)),
    'label target': dict(target='label'),
    'soft target': dict(target='soft', temperature=2.0),
    'local target': dict(target='local'),
    'local target, guidance by the gradient': dict(target='local', guidance_unit='gradient'),
    'local target, autoencoder': dict(target='local', autoencoder=dict(latent_channels=8)),
    'gradients through the sampler': dict(detach=False),
    'guidance by the gradient': dict(guidance_unit='gradient'),
    'guidance at the clean feature': dict(sampler=dict(guidance_point='clean')),
    'no guidance': dict(sampler=dict(scale=0)),
    'one step': dict(sampler=dict(steps=1)),
    'no noise': dict(sampler=dict(noise='none')),
    'noise adapter': dict(sampler=dict(noise='adapter'), detach=False),
    'noise adapter by the magnitude': dict(
        sampler=dict(noise='adapter'), detach=False, lsh=dict(magnitude=1.0), loss_weights=dict(virtual=0)
    ),
    'no normalisation': dict(normalize=False),
    'warm-up': dict(warmup=10),
    'autoencoder': dict(autoencoder=dict(latent_channels=8)),
    'autoencoder, gradients through the sampler': dict(autoencoder=dict(latent_channels=8), detach=False),
    'bridge': dict(diffusion=dict(type='dskd_mm.FeatureBridge'), prior='teacher'),
    'bridge, autoencoder': dict(
        diffusion=dict(type='dskd_mm.FeatureBridge'), prior='teacher', autoencoder=dict(latent_channels=8)
    ),
    'autoencoder, teacher prior': dict(autoencoder=dict(latent_channels=8), prior='teacher'),
    'autoencoder, guidance by the gradient': dict(autoencoder=dict(latent_channels=8), guidance_unit='gradient'),
    'autoencoder with adapter': dict(autoencoder=dict(latent_channels=8), detach=False, sampler=dict(noise='adapter')),
    'hash by the median': dict(lsh=dict(bias='median', bits=64)),
    'hash without bias': dict(lsh=dict(bias='zero', std=0.1)),
    'hash with magnitude': dict(lsh=dict(magnitude=1.0)),
    'hash of a map': dict(site=dict(dense=True)),
    'named hash': dict(lsh=dict(type='dskd_mm.LSHDistillLoss', bits=32)),
    'mlp': dict(align=dict(kind='mlp')),
    'group norms': dict(align=dict(norm='GN'), denoiser=dict(norm='GN')),
    'shorter schedule': dict(schedule=dict(num_train_steps=100)),
    'no diffusion loss': dict(loss_weights=dict(diff=0)),
    'no hash': dict(loss_weights=dict(lsh=0)),
    'no anchor': dict(loss_weights=dict(anchor=0)),
    'no virtual teacher': dict(loss_weights=dict(virtual=0)),
    'no logit distillation': dict(loss_weights=dict(logit=0)),
    'the anchor alone': dict(loss_weights=dict(diff=0, lsh=0, virtual=0, logit=0)),
    'logits alone': dict(loss_weights=dict(diff=0, lsh=0, virtual=0, anchor=0)),
    'nothing': dict(loss_weights=dict(diff=0, lsh=0, virtual=0, anchor=0, logit=0)),
    'nothing, local target': dict(target='local', loss_weights=dict(diff=0, lsh=0, virtual=0, anchor=0, logit=0)),
    'a feature of an earlier stage': dict(site=dict(feature=dict(path='backbone.layer2', channels=8))),
}


@pytest.mark.parametrize('name', SWITCHES)
def test_every_switch_trains_every_parameter(teachers, name):
    distiller = build('gap', teachers['gap'], **SWITCHES[name])
    for _ in range(2):
        distiller.zero_grad()
        losses = step(distiller)
        assert_trains(distiller, losses)
        assert 'loss' in losses


def test_one_image_trains_with_group_norms(teachers):
    """A batch of one has no batch statistics for vectors."""
    for kind in ('vit', 'gap'):
        distiller = build(kind, teachers[kind], align=dict(norm='GN'), denoiser=dict(norm='GN'))
        assert_trains(distiller, step(distiller, batch=1))


@pytest.mark.parametrize('dtype', [torch.bfloat16])
@pytest.mark.parametrize('switches', [dict(), dict(autoencoder=dict(latent_channels=8)), dict(detach=False)])
def test_losses_are_float32_and_close_under_autocast(teachers, dtype, switches):
    plain = step(build('gap', teachers['gap'], warmup=0, **switches))
    images, samples = random_batch()
    with torch.autocast('cpu', dtype):
        losses = build('gap', teachers['gap'], warmup=0, **switches)(images, samples, mode='loss')
    for name, value in losses.items():
        if 'dskd' in name:
            assert value.dtype == torch.float32, name
        if name.startswith('loss'):
            torch.testing.assert_close(value.float(), plain[name], rtol=0.1, atol=0.1, msg=name)


def test_without_teacher_terms_no_backbone_of_it_is_built(teachers):
    config = teachers['gap']['config']['model'].copy()
    config['backbone'] = dict(type='NoSuchBackbone')
    teacher = dict(config=dict(model=config), checkpoint=teachers['gap']['checkpoint'])
    distiller = build('gap', teacher, prior='student', target='label', loss_weights=dict(logit=0))
    assert not distiller.uses_teacher_forward
    assert_trains(distiller, step(distiller))
    assert distiller.teacher.model is None
    for needs_it in (dict(prior='teacher'), dict(target='soft'), dict(target='local'), dict(loss_weights=dict())):
        switches = {**dict(prior='student', target='label', loss_weights=dict(logit=0)), **needs_it}
        other = build('gap', teacher, **switches)
        assert other.uses_teacher_forward
        with pytest.raises(KeyError, match='NoSuchBackbone'):
            step(other)


def test_strength_of_guidance_shows_in_the_denoised_features_class(teachers):
    """Without guidance the denoised feature need not be of the wanted class; with a strong one it must."""
    accuracies = []
    for scale in (0, 20.0):
        distiller = build('gap', teachers['gap'], target='label', sampler=dict(scale=scale))
        distiller.load_teacher()
        losses = step(distiller, batch=16)
        accuracies.append(float(losses['dskd_acc_denoised']))
    assert accuracies[0] < 0.8
    assert accuracies[1] == 1


class ToySite(ClassificationSite):
    """A task with a row of its own in the table of defaults."""

    task = 'toy'


ROW = dict(
    target='label',
    temperature=2.0,
    denoiser=dict(norm='GN'),
    sampler=dict(steps=3, scale=2.0),
    autoencoder=dict(latent_channels=8),
    loss_weights=dict(logit=0.0, lsh=3.0),
)


@pytest.fixture
def toy_row(monkeypatch) -> None:
    monkeypatch.setitem(TASK_DEFAULTS, 'toy', ROW)


def kinds(module: nn.Module) -> set[str]:
    return {type(layer).__name__ for layer in module.modules()}


def test_a_task_decides_what_is_not_given(teachers, toy_row):
    distiller = build('gap', teachers['gap'], site=ToySite())
    assert (distiller.options.target, distiller.options.temperature) == ('label', 2.0)
    assert (distiller.diffusion.sampler.steps, distiller.diffusion.sampler.scale) == (3, 2.0)
    assert 'GroupNorm' in kinds(distiller.diffusion.denoiser) and 'BatchNorm2d' not in kinds(distiller.diffusion.denoiser)
    assert distiller.diffusion.autoencoder.decoder.in_channels == distiller.diffusion.denoiser.channels == 8
    assert distiller.options.loss_weights == dict(diff=1.0, lsh=3.0, anchor=1.0, virtual=1.0, logit=0.0, channel=0.0, box=0.0)
    assert_trains(distiller, step(distiller))


def test_what_is_given_goes_before_the_tasks_row(teachers, toy_row):
    given = dict(
        target='soft',
        temperature=1.0,
        denoiser=dict(norm='BN'),
        sampler=dict(steps=2),
        autoencoder=False,
        loss_weights=dict(logit=0.5),
    )
    distiller = build('gap', teachers['gap'], site=ToySite(), **given)
    assert (distiller.options.target, distiller.options.temperature) == ('soft', 1.0)
    assert (distiller.diffusion.sampler.steps, distiller.diffusion.sampler.scale) == (2, 2.0), (
        'what is not named keeps the advice'
    )
    assert 'BatchNorm2d' in kinds(distiller.diffusion.denoiser) and 'GroupNorm' not in kinds(distiller.diffusion.denoiser)
    assert distiller.diffusion.autoencoder is None
    assert distiller.diffusion.denoiser.channels == 24
    assert distiller.options.loss_weights == dict(diff=1.0, lsh=3.0, anchor=1.0, virtual=0.0, logit=0.5, channel=0.0, box=0.5)


def test_a_latent_no_narrower_than_the_features_is_no_default(teachers, monkeypatch):
    monkeypatch.setitem(TASK_DEFAULTS, 'toy', dict(autoencoder=dict(latent_channels=24)))
    assert build('gap', teachers['gap'], site=ToySite()).diffusion.autoencoder is None


def test_of_an_autoencoder_what_is_not_named_keeps_the_advice(teachers, monkeypatch):
    monkeypatch.setitem(TASK_DEFAULTS, 'toy', dict(autoencoder=dict(latent_channels=8)))
    diffusion = build('gap', teachers['gap'], site=ToySite(), autoencoder=dict(norm='GN')).diffusion
    assert diffusion.denoiser.channels == 8 and 'GroupNorm' in kinds(diffusion.autoencoder)


def test_images_have_the_defaults_of_the_core(teachers):
    distiller = build('gap', teachers['gap'])
    assert (distiller.options.target, distiller.options.temperature, distiller.diffusion.autoencoder) == ('soft', 4.0, None)
    assert {name for name, weight in distiller.options.loss_weights.items() if weight != 1} == {'channel', 'virtual'}
    assert 'GroupNorm' in kinds(distiller.diffusion.denoiser) and distiller.diffusion.denoiser.time == 'film'
    assert (type(distiller.imitation), distiller.imitation.temperature, distiller.options.warmup) == (DKDLoss, 4.0, 200)
    sampler = distiller.diffusion.sampler
    assert (sampler.steps, sampler.start, sampler.scale, sampler.guidance_point) == (2, 0.2, 20.0, 'clean')
    assert (distiller.guidance_temperature, distiller.lsh.soft, distiller.lsh_share.share) == (4.0, True, 0.3)


def test_how_predictions_follow_can_be_told(teachers):
    softer = build('gap', teachers['gap'], temperature=2.0)
    assert (type(softer.imitation), softer.imitation.temperature) == (DKDLoss, 2.0)
    other = build('gap', teachers['gap'], imitation=dict(type='dskd_mm.DISTLoss', beta=2.0, temperature=1), warmup=3)
    assert (type(other.imitation), other.imitation.beta, other.imitation.temperature, other.options.warmup) == (
        DISTLoss,
        2.0,
        1,
        3,
    )
    for follows in (dict(target='label'), dict(loss_weights=dict(logit=0))):
        assert build('gap', teachers['gap'], **follows).options.warmup == 200
    teacher_free = dict(target='label', loss_weights=dict(logit=0))
    assert build('gap', teachers['gap'], **teacher_free).options.warmup == 0, 'nothing there that would have to begin small'
    assert build('gap', teachers['gap'], warmup=5, **teacher_free).options.warmup == 5
    named = build('gap', teachers['gap'], imitation=dict(type='dskd_mm.DKDLoss', beta=2.0))
    assert named.imitation.beta == 2.0
    coupled = build('gap', teachers['gap'], imitation=dict(type='dskd_mm.KDLoss'), temperature=3.0)
    assert (type(coupled.imitation), coupled.imitation.temperature) == (KDLoss, 3.0)
    assert_trains(other, step(other))
    independent = build('multi_label', teachers['multi_label'])
    assert isinstance(independent.imitation, KDLoss), 'independent classes have no true one'


def test_wrong_classes_weigh_less_where_they_are_few(teachers):
    distiller = build('gap', teachers['gap'])
    assert distiller.imitation.beta == pytest.approx(CLASSES / 10)
    # Nor does it weigh more for those who name the loss to give it another temperature.
    named = build('gap', teachers['gap'], imitation=dict(type='dskd_mm.DKDLoss', temperature=2.0))
    assert (named.imitation.beta, named.imitation.temperature) == (pytest.approx(CLASSES / 10), 2.0)
    found = {}
    for number in (2, 10, 37, 100, 1000):
        teacher = replace(distiller.teacher_spec, num_classes=number)
        options = DSKDOptions.resolve(type(distiller), {}, distiller.site, distiller.student_spec, teacher)
        found[number] = options.imitation['beta']
    assert found == pytest.approx({2: 0.2, 10: 1.0, 37: 3.7, 100: 8.0, 1000: 8.0})


def test_what_is_no_loss_on_logits_is_refused(teachers):
    for config in (dict(type='dskd_mm.FitNetLoss'), dict(type='ReLU'), dict(beta=2.0), 'dskd_mm.KDLoss'):
        with pytest.raises(TypeError, match='imitation of DSKDDistiller expects the config of a LogitLoss'):
            build('gap', teachers['gap'], imitation=config)
    with pytest.raises(TypeError, match=r"imitation .*'tau'"):
        build('gap', teachers['gap'], imitation=dict(type='dskd_mm.KDLoss', tau=3))
    with pytest.raises(ValueError, match='DKDLoss expects at least two exclusive classes'):
        build('multi_label', teachers['multi_label'], imitation=dict(type='dskd_mm.DKDLoss'))


def test_warm_up_raises_all_but_what_the_diffusion_learns_by(teachers):
    ramp = []
    for warmup in (0, 4):
        distiller = build('gap', teachers['gap'], warmup=warmup, loss_weights=dict(virtual=1.0))
        images, samples = random_batch()
        ramp.append([distiller(images, samples, mode='loss') for _ in range(5)])
    for i, (plain, warm) in enumerate(zip(*ramp, strict=True)):
        for name in ('anchor', 'lsh', 'virtual', 'logit'):
            expected = min((i + 1) / 4, 1) * plain[f'loss_dskd_{name}']
            torch.testing.assert_close(warm[f'loss_dskd_{name}'], expected)
        torch.testing.assert_close(warm['loss_dskd_diff'], plain['loss_dskd_diff'])
        assert 'distill_warmup' not in plain
        assert float(warm['distill_warmup']) == min((i + 1) / 4, 1)


def spread(distiller: nn.Module, prior: Tensor) -> float:
    """What features are divided by after a batch."""
    distiller.diffusion.loss(prior.flatten(2), Pyramid([(4, 4)]), torch.Generator().manual_seed(0))
    return float(distiller.diffusion.scale)


def test_spread_of_features_is_a_running_average(teachers):
    distiller = build('gap', teachers['gap'])
    priors = [torch.randn(2, 24, 4, 4) * factor for factor in (2, 4, 6)]
    expected = float(priors[0].std())
    for i, prior in enumerate(priors):
        expected = expected if i == 0 else 0.99 * expected + 0.01 * float(prior.std())
        assert spread(distiller, prior) == pytest.approx(expected, rel=1e-5)
    assert spread(distiller, priors[0] / 0) == pytest.approx(expected), 'a bad batch must leave no trace'
    assert spread(build('gap', teachers['gap'], normalize=False), priors[0]) == 1


def test_noise_follows_from_seed_rank_and_iteration_alone(teachers, monkeypatch):
    def draws(distiller: nn.Module) -> list[Tensor]:
        result = []
        for _ in range(3):
            result.append(torch.randn(5, generator=distiller.noise_generator(torch.device('cpu'))))
            distiller._tick()
        return result

    first, second = build('gap', teachers['gap']), build('gap', teachers['gap'])
    torch.manual_seed(99)
    sequence = draws(first)
    assert len({tuple(draw.tolist()) for draw in sequence}) == 3
    second.load_state_dict(build('gap', teachers['gap']).state_dict())
    torch.testing.assert_close(draws(second), sequence)

    resumed = build('gap', teachers['gap'])
    resumed._tick()
    state = resumed.state_dict()
    third = build('gap', teachers['gap'])
    third.noise_generator(torch.device('cpu'))  # before loading, so a stale clock would show
    third.load_state_dict(state)
    torch.testing.assert_close(draws(third)[:2], sequence[1:])

    monkeypatch.setattr('dskd_mm.distillers.base.get_rank', lambda: 1)
    assert not torch.equal(draws(build('gap', teachers['gap']))[0], sequence[0])


def test_any_of_several_labels_is_a_hit_and_the_main_one_of_mixed_images():
    """What has no class, such as background, can be neither hit nor missed; nor can what is ignored."""
    probability = torch.tensor([[0, 1.0, 1], [0, 0, 0], [0.3, 0.7, 0], [0.3, 0.7, 0]])
    logits = torch.tensor([[0, 0, 1.0], [0, 0, 1], [0, 1, 0], [1, 0, 0]])
    assert float(hit_rate(logits, Target(probability))) == pytest.approx(2 / 3)
    weight = torch.tensor([[1.0], [1], [0], [1]])
    assert hit_rate(logits, Target(probability, weight)) == 0.5
    locations = Target(probability.T[None], weight.T[None])
    assert hit_rate(logits.T[None], locations) == 0.5
    assert hit_rate(logits, Target(probability, torch.zeros(4, 1))) == 0
    # One class alone is named by a positive logit; what is none of it does not count.
    single = Target(torch.tensor([[[1.0, 1.0, 0.0]]]))
    assert hit_rate(torch.tensor([[[2.0, -1.0, 3.0]]]), single) == 0.5


def test_background_is_no_hit_but_it_can_be_mistaken_for_an_object():
    classes, named = torch.tensor([2, 2, 2, 0, 1, 0]), torch.tensor([2, 2, 0, 0, 2, 1])  # 2 is the background
    one_hot = torch.eye(3)
    label = Target(one_hot[classes], background=True)
    assert float(hit_rate(one_hot[named], label)) == pytest.approx(1 / 3)
    assert float(hit_rate(one_hot[named], Target(one_hot[classes]))) == pytest.approx(3 / 6)


# ---------------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ('switches', 'message'),
    [
        (dict(prior='both'), r"prior of DSKDDistiller must be one of \('student', 'teacher'\), but got 'both'"),
        (dict(target='hard'), "target .* but got 'hard'"),
        (dict(guidance_unit='pixel'), "guidance_unit .* but got 'pixel'"),
        (dict(loss_weights=dict(kd=1)), r"loss_weights of DSKDDistiller expects .*'box', .*'virtual'.*but got {'kd': 1}"),
        (dict(preset='paper'), r"preset of DSKDDistiller must be one of \('default', 'published', 'teacher_free'\)"),
        (dict(denoiser=dict(time='sine')), "time of DiffusionDenoiser must be 'table' or 'film', but got 'sine'"),
        (dict(guidance_temperature=0), 'temperature of DSKDDistiller must be positive, but got 0'),
        (dict(lsh_share=-1), 'lsh_share of DSKDDistiller must not be negative, but got -1'),
        (dict(temperature=0), 'temperature of DSKDDistiller must be positive, but got 0'),
        (dict(warmup=-1), 'warmup .*but got -1'),
        (dict(loss_weights=dict(lsh=-1)), "not negative.*'lsh': -1"),
        (dict(sampler=dict(noise='adapter')), 'detach=False'),
        (
            dict(sampler=dict(noise='adapter'), detach=False, loss_weights=dict(virtual=0)),
            "no loss to be trained by.*'virtual'.*magnitude",
        ),
        (
            dict(schedule=dict(num_train_steps=2000), denoiser=dict(time='table', num_embeddings=1500)),
            'embeds 1500 timesteps, but the schedule has 2000',
        ),
        (dict(align=dict(kind='identity')), 'student has 16 and the teacher 24'),
        (dict(autoencoder=dict(norm='GN')), 'autoencoder .* expects latent_channels, fewer than the 24'),
        (
            dict(diffusion=dict(type='dskd_mm.FeatureBridge'), prior='teacher', detach=False, sampler=dict(noise='adapter')),
            "no noise to adapt: leave out noise='adapter'",
        ),
    ],
)
def test_switches_that_cannot_train_are_refused(teachers, switches, message):
    with pytest.raises(ValueError, match=message):
        build('gap', teachers['gap'], **switches)


def test_other_classes_than_the_teachers_are_refused(teachers):
    with pytest.raises(ValueError, match=r'student classifies 7 classes \(head.fc\), the teacher 5'):
        MODELS.build(
            dict(type='dskd_mm.DSKDDistiller', student=classifier_config('gap', num_classes=7), teacher=teachers['gap'])
        )


@pytest.mark.parametrize('teacher', [None, dict(config='teacher.py'), 'teacher.pth'])
def test_an_incomplete_teacher_is_refused(teacher):
    with pytest.raises(TypeError, match=r'teacher expects dict\(config=..., checkpoint=...\)'):
        build('gap', teacher)


def test_a_distiller_is_no_student(teachers):
    inner = dict(type='dskd_mm.DSKDDistiller', student=classifier_config('gap'), teacher=teachers['gap'])
    with pytest.raises(TypeError, match='plain model of a host library, but got a DSKDDistiller'):
        MODELS.build(dict(type='dskd_mm.DSKDDistiller', student=inner, teacher=teachers['gap']))


def test_a_layer_between_pooling_and_classifier_is_noticed(teachers):
    distiller = build('gap', teachers['gap'])
    distiller.student.head.pre_logits = lambda feats: F.normalize(feats[-1]) * 10
    with pytest.raises(ValueError, match=r"does not lead to its logits.*io='input'"):
        step(distiller)


def test_a_feature_of_other_channels_than_named_is_refused(teachers):
    distiller = build('gap', teachers['gap'], site=dict(feature=dict(path='backbone.layer2', channels=12)))
    with pytest.raises(ValueError, match=r'expected to be of shape \(B, 12, H, W\).*but got \(4, 8, 8, 8\)'):
        step(distiller)


def test_a_wrong_label_is_reported_before_the_students_loss_stumbles(teachers):
    distiller = build('gap', teachers['gap'])
    images, samples = random_batch()
    samples[2].set_gt_label(CLASSES)
    with pytest.raises(ValueError, match=r'Sample 2 .* has the label \[5\]'):
        distiller(images, samples, mode='loss')


def test_checkpoints_from_before_the_diffusion_had_a_module_load(teachers):
    """Their keys are renamed on load: nothing is missing, nothing is left over, whatever prefix a wrapper gives."""
    switches: dict = FIRST_CONSTRUCTION | dict(autoencoder=dict(latent_channels=8), detach=False, sampler=dict(noise='adapter'))
    distiller = build('gap', teachers['gap'], **switches)
    step(distiller)
    state = distiller.state_dict()
    old = {key.replace('diffusion.std', 'feature_std').removeprefix('diffusion.'): value for key, value in state.items()}
    assert {'feature_std', 'denoiser.time_embedding.weight'} <= set(old) and not [key for key in old if 'diffusion' in key]
    other = build('gap', teachers['gap'], **switches)
    other.load_state_dict(old)
    assert all(torch.equal(value, state[key]) for key, value in other.state_dict().items())


def test_what_was_built_otherwise_begins_anew(teachers, monkeypatch):
    """A checkpoint of the first construction loads into today's: student and alignment as they were, and a word about it."""
    first, other = build('gap', teachers['gap'], **FIRST_CONSTRUCTION), build('gap', teachers['gap'])
    for parameter in first.parameters():
        nn.init.normal_(parameter)
    before = {key: value.clone() for key, value in other.state_dict().items()}
    said: list[str] = []
    monkeypatch.setattr('dskd_mm.distillers.dskd.print_log', lambda message, *args: said.append(message))
    other.load_state_dict(first.state_dict())
    for key, value in other.state_dict().items():
        is_new = key.startswith(('diffusion.denoiser', 'lsh'))
        assert torch.equal(value, (before if is_new else first.state_dict())[key]), key
    assert len(said) == 2
    assert 'diffusion.denoiser is of another construction' in said[0] and "denoiser=dict(time='table', norm='BN')" in said[0]
    assert 'lsh=dict(soft=False), lsh_share=0' in said[1]
    # The mend that it names works.
    mended = build('gap', teachers['gap'], denoiser=dict(time='table', norm='BN'), lsh=dict(soft=False), lsh_share=0)
    mended.load_state_dict(first.state_dict())
    assert all(torch.equal(value, first.state_dict()[key]) for key, value in mended.state_dict().items())
    assert len(said) == 2


@pytest.mark.parametrize(
    ('then', 'now', 'part', 'words'),
    [
        (dict(), dict(lsh=dict(bits=64)), 'lsh.', ['lsh is of another', 'give lsh the options of the run that wrote it']),
        (dict(), dict(denoiser=dict(norm='BN')), 'diffusion.denoiser.', ['give denoiser the options of the run']),
        (dict(lsh_share=0), dict(), 'lsh_share.', []),
        (dict(), dict(lsh_share=0), 'lsh_share.', []),
    ],
)
def test_only_what_was_built_otherwise_begins_anew(teachers, monkeypatch, then, now, part, words):
    one, other = build('gap', teachers['gap'], **then), build('gap', teachers['gap'], **now)
    step(one)
    said: list[str] = []
    monkeypatch.setattr('dskd_mm.distillers.dskd.print_log', lambda message, *args: said.append(message))
    other.load_state_dict(one.state_dict())
    assert [word for word in words if word not in ' '.join(said)] == [] and len(said) == bool(words)
    kept = {key: value for key, value in other.state_dict().items() if not key.startswith(part)}
    assert kept and all(torch.equal(value, one.state_dict()[key]) for key, value in kept.items())
    build('gap', teachers['gap'], **then).load_state_dict(one.state_dict())  # the mend
    assert len(said) == bool(words)


# ------------------------------------------------------------------------------------------- what is mended


def test_the_timestep_changes_what_is_sampled(teachers, monkeypatch):
    """In training mode, too: all samples of a sampling step have the same one."""
    distiller = build('gap', teachers['gap'])
    denoiser = distiller.diffusion.denoiser
    for name, parameter in denoiser.named_parameters():
        if 'scale_shift' in name or 'output' in name:
            nn.init.normal_(parameter, std=0.3)
    x = torch.randn(4, 24, 4, 4)
    sigma = distiller.diffusion.schedule.noise_level(400)[1] - distiller.diffusion.schedule.noise_level(0)[1]
    own = denoiser(x, 400) - denoiser(x, 0) - sigma * x  # beside the part that the schedule alone changes
    assert own.abs().mean() > 0.1
    images, samples = random_batch()
    seeing, network = distiller.denoise(images, samples)[1], denoiser.network
    monkeypatch.setattr(denoiser, 'network', lambda noisy, timestep: network(noisy, 0))
    assert (distiller.denoise(images, samples)[1] - seeing).abs().mean() > 0.01 * seeing.abs().mean()
    first = build('gap', teachers['gap'], **FIRST_CONSTRUCTION).diffusion.denoiser
    # What is wrong with a common row before a batch norm of one convolution: nothing of it is left.
    nn.init.zeros_(first.layers[0].layers[-1].weight)
    nn.init.zeros_(first.layers[1].layers[-1].weight)
    assert (first(x, 400) - first(x, 0)).abs().max() < 1e-4


def test_guidance_leaves_a_feature_that_says_the_target(teachers):
    """At the predicted clean feature, of which nothing but noise was taken away: not at a noised one."""
    distiller = build('gap', teachers['gap'])
    distiller.load_teacher()
    (classifier,), pyramid = distiller.classifiers, Pyramid([(4, 4)])
    z = torch.randn(4, 24, 16)
    said = pyramid.map([classifier], z)
    guide = ClassifierGuide(pyramid, [classifier], Target(torch.eye(CLASSES)[:4]), said, temperature=4.0)
    guidance = guide.guidance('logit', torch.ones(()), None)
    noise, schedule = torch.randn(z.shape), distiller.diffusion.schedule

    def knows_the_noise(x: Tensor, t: int) -> Tensor:
        signal, sigma = schedule.noise_level(t)
        return (x - signal * z) / sigma

    def moved(point: str) -> float:
        steps: list[Tensor] = []
        TeacherGuidedSampler(2, 0.2, 20.0, point)(knows_the_noise, schedule, z, noise, guidance, trajectory=steps)
        return max(float((step - z).abs().max()) for step in steps)

    assert moved('clean') < 1e-4
    assert moved('noisy') > 0.01


def test_a_denoised_feature_that_is_farther_away_does_not_teach(teachers, monkeypatch):
    """Two images of four are denoised to the opposite of what the teacher says: neither has a gradient."""

    def gradients(**switches) -> tuple[Tensor, dict]:
        distiller = build('gap', teachers['gap'], warmup=0, loss_weights=dict(virtual=1.0), **switches)
        distiller.load_teacher()
        weight = distiller.classifiers[0].weight
        torch.manual_seed(1)
        feature = torch.randn(4, 16, 4, 4, requires_grad=True)
        logits, theirs = torch.zeros(4, CLASSES, requires_grad=True), torch.zeros(4, CLASSES)
        theirs[:, 1] = 5.0
        sign = torch.tensor([1.0, -1.0, 1.0, -1.0])[:, None, None]
        bad = sign * 10 * (weight[1] - weight.mean(dim=0))[None, :, None] / weight.square().sum()
        monkeypatch.setattr(distiller.diffusion, 'denoise', lambda start, *args: (start + 10 * bad, None))
        target = Target(torch.eye(CLASSES)[[1, 1, 1, 1]])
        teacher = ModelOutputs([torch.randn(4, 24, 4, 4)], [theirs])
        distiller.eval().lsh_share.train()  # no norm mixes the images
        losses = distiller.distill(ModelOutputs([feature], [logits]), teacher, target, no_head_loss)
        (losses['loss_dskd_lsh'] + losses['loss_dskd_virtual']).backward()
        return torch.stack([feature.grad.flatten(1).norm(dim=1), logits.grad.norm(dim=1)]), losses

    got, losses = gradients()
    assert losses['dskd_gate'] == 0.5
    assert losses['dskd_kl_denoised'] > losses['dskd_kl_student']
    assert (got[:, [0, 2]] > 0).all() and (got[:, [1, 3]] == 0).all()
    every, _ = gradients(gate=False)
    assert (every > 0).all()
    # Those that teach do so no more than if all did.
    torch.testing.assert_close(got[0, [0, 2]] / every[0, [0, 2]], torch.ones(2), rtol=0.5, atol=0)
