"""DSKD on several levels against a computation level by level: dense classifiers with anchors, and heads without one."""

import math
from collections.abc import Callable

import pytest
import torch
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn import functional as F

from dskd_mm.guidance import TeacherClassifier
from dskd_mm.sites import Site
from dskd_mm.sites.annotations import location_classes, sample_stratified
from dskd_mm.structures import ModelOutputs, Target
from dskd_mm.testing import classifier_config, random_teacher
from support import FIRST_CONSTRUCTION, matched_cosine

SIZES = [(4, 3), (2, 2), (1, 1)]
LENGTHS = [12, 4, 1]
BATCH, CLASSES, ANCHORS, WIDTH, VECTORS = 3, 5, 2, 24, 6
TEMPERATURE, COUNT = 2.0, 3.0
WEIGHTS = dict(diff=0.5, lsh=2.0, anchor=3.0, virtual=0.7, logit=1.5)


class ToySite(Site):
    """Hashes a choice of locations; what is tapped is given by hand."""

    vectors_per_image = VECTORS
    student_spec = teacher_spec = target = None


@pytest.fixture(scope='module')
def teacher(tmp_path_factory) -> dict:
    return random_teacher(str(tmp_path_factory.mktemp('teacher')))


def build(teacher: dict, **switches) -> nn.Module:
    torch.manual_seed(0)
    # What detectors have: the site is changed below.
    switches |= dict(temperature=TEMPERATURE, imitation=dict(type='dskd_mm.KDLoss'), warmup=0)
    config = dict(student=classifier_config('gap'), teacher=teacher, noise_seed=7, **switches)
    distiller = MODELS.build(dict(type='dskd_mm.DSKDDistiller', **config)).train()
    distiller.load_teacher()
    distiller.site = ToySite()
    distiller.noise_generator = lambda device, *key: torch.Generator(device).manual_seed(11)
    return distiller


def without_classifier(distiller: nn.Module) -> nn.Module:
    distiller.teacher.model, distiller.teacher.classifiers = nn.Identity(), []
    return distiller


def per_level(packed: Tensor) -> list[Tensor]:
    return [level.reshape(BATCH, -1, *size) for level, size in zip(packed.split(LENGTHS, dim=2), SIZES, strict=True)]


def focused(logits: Tensor, q: Tensor, weight: Tensor, temperature: float) -> Tensor:
    """Quality focal loss with an exponent of 1, over the count of objects."""
    p = torch.sigmoid(logits / temperature)
    entropy = -(q * torch.log(p) + (1 - q) * torch.log(1 - p))
    return (weight * (q - p).abs() * entropy).sum() / COUNT * temperature**2


def denoise(distiller: nn.Module, z: Tensor, clean: Tensor, guide: Callable[[Tensor], Tensor], generator: torch.Generator):
    """Diffusion loss and denoised features, with one more write-up of schedule and sampler."""
    std = clean.std()
    alpha, product = [], 1.0
    for i in range(1000):
        product *= 1 - (1e-4 + (0.02 - 1e-4) * i / 999)
        alpha.append(product)

    def predict(x: Tensor, t: int | Tensor) -> Tensor:
        return torch.cat([distiller.diffusion.denoiser(level, t).flatten(2) for level in per_level(x)], dim=2)

    t = torch.randint(1000, (BATCH,), generator=generator)
    noise = torch.randn(BATCH, WIDTH, sum(LENGTHS), generator=generator)
    a = torch.tensor([alpha[i] for i in t.tolist()])[:, None, None]
    diffusion = ((predict(a.sqrt() * clean / std + (1 - a).sqrt() * noise, t) - noise) ** 2).mean()

    noise = torch.randn(BATCH, WIDTH, sum(LENGTHS), generator=generator)
    x = math.sqrt(alpha[400]) * z.detach() / std + math.sqrt(1 - alpha[400]) * noise
    for t in (400, 300, 200, 100, 0):
        root, sigma = math.sqrt(alpha[t]), math.sqrt(1 - alpha[t])
        with torch.no_grad():
            epsilon = predict(x, t) - sigma * guide(x * std) / std
        x_0 = (x - sigma * epsilon) / root
        x = x_0 if t == 0 else math.sqrt(alpha[t - 100]) * x_0 + math.sqrt(1 - alpha[t - 100]) * epsilon
    power = float((clean / std).square().mean())
    trivial = torch.tensor(sum(a * (1 - a) * power + a * a for a in alpha) / 1000)
    return dict(diff=diffusion, noise_error=diffusion, trivial_error=trivial, std=std), x * std


def hashing(distiller: nn.Module, ours: Tensor, theirs: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of the bits of vectors (M, C), and the share of equal ones."""
    ours, theirs = ((v @ (distiller.lsh.projection * distiller.lsh.std).T)[weight > 0] for v in (ours, theirs))
    middle = theirs.mean(dim=0)
    bits = (theirs > middle).float()
    return F.binary_cross_entropy_with_logits(ours - middle, bits), ((ours > middle) == (bits > 0)).float().mean()


def assert_losses(losses: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert {name.removeprefix('loss_dskd_').removeprefix('dskd_') for name in losses} == set(expected)
    for name, value in losses.items():
        term = name.removeprefix('loss_dskd_').removeprefix('dskd_')
        factor = WEIGHTS[term] if name.startswith('loss_') else 1
        torch.testing.assert_close(value, factor * expected[term], rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.parametrize('shared', [True, False], ids=['one classifier', 'one a level'])
@pytest.mark.parametrize('prior', ['student', 'teacher'])
@pytest.mark.parametrize('target', ['label', 'soft'])
def test_levels_of_a_dense_detector_are_the_straight_line(teacher, shared, prior, target):
    distiller = build(teacher, prior=prior, target=target, loss_weights=WEIGHTS, **FIRST_CONSTRUCTION)
    layers = [nn.Conv2d(WIDTH, ANCHORS * CLASSES, 3, padding=1) for _ in range(1 if shared else len(SIZES))]
    distiller.teacher.classifiers = [TeacherClassifier.from_layer(layer, True, ANCHORS) for layer in layers]
    distiller.imitation.sigmoid = True  # as if it had been bound to such a teacher
    each = [layer.requires_grad_(False) for layer in (layers * len(SIZES) if shared else layers)]

    student_maps = [torch.randn(BATCH, 16, *size, requires_grad=True) for size in SIZES]
    teacher_maps = [2 * torch.randn(BATCH, WIDTH, *size) for size in SIZES]
    predictions = ANCHORS * sum(LENGTHS)
    logits = torch.randn(BATCH, CLASSES, predictions, requires_grad=True)
    teacher_logits = 2 * torch.randn(BATCH, CLASSES, predictions)
    labels = torch.randint(3 * CLASSES, (BATCH, predictions))  # two thirds are background
    one_hot = (labels[:, None] == torch.arange(CLASSES)[:, None]).float()
    weight = torch.rand(BATCH, 1, predictions) * (torch.rand(BATCH, 1, predictions) > 0.2)
    annotations = Target(one_hot, weight, torch.tensor(COUNT), focus=1.0)

    def classify(packed: Tensor) -> Tensor:
        """mmdet's order of predictions: levels, rows, columns, anchors."""
        flat = [
            layer(m).permute(0, 2, 3, 1).reshape(BATCH, -1, CLASSES) for layer, m in zip(each, per_level(packed), strict=True)
        ]
        return torch.cat(flat, dim=1).transpose(1, 2)

    q = one_hot if target == 'label' else teacher_logits.sigmoid()
    gains = [(layer.weight**2).sum(dim=(1, 2, 3)).mean() for layer in each]
    gain = torch.cat([value.expand(length) for value, length in zip(gains, LENGTHS, strict=True)])

    def guide(x: Tensor) -> Tensor:
        """In the unit of logits, the gradient of the weighted log-likelihood by what the classifier sees."""
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            log_p = -F.binary_cross_entropy_with_logits(classify(leaf), q, reduction='none')
            return torch.autograd.grad((weight * log_p).sum(), leaf)[0] / gain

    z = distiller.align(torch.cat([level.flatten(2) for level in student_maps], dim=2)[..., None])[..., 0]
    softened = torch.sigmoid(teacher_logits / TEMPERATURE)
    anchor = (one_hot, 1.0) if target == 'label' else (softened, TEMPERATURE)
    theirs = torch.cat([level.flatten(2) for level in teacher_maps], dim=2)
    same = (theirs - theirs.mean(dim=(0, 2), keepdim=True)) / theirs.std(dim=(0, 2), keepdim=True, unbiased=False)
    same = same * z.std(dim=(0, 2), keepdim=True, unbiased=False) + z.mean(dim=(0, 2), keepdim=True)
    clean = z.detach() if prior == 'student' else same.detach()
    generator = torch.Generator().manual_seed(11)
    diffusion, denoised = denoise(distiller, z, clean, guide, generator)
    opinion = classify(denoised)
    expected = dict(
        anchor=focused(classify(z), anchor[0], weight, anchor[1]),
        logit=focused(logits, softened, weight, TEMPERATURE),
        virtual=focused(logits, torch.sigmoid(opinion / TEMPERATURE), weight, TEMPERATURE),
        **diffusion,
    )
    of_images = []
    for name, said in (('student', classify(z)), ('denoised', opinion)):
        p = torch.sigmoid(said)
        of_images.append((weight * (q - p).abs() * -(q * torch.log(p) + (1 - q) * torch.log(1 - p))).sum(dim=(1, 2)))
        expected[f'kl_{name}'] = of_images[-1].sum() / COUNT
    expected['gate'] = (of_images[1] <= of_images[0]).float().mean()
    classes, rows = location_classes(annotations, sum(LENGTHS)), torch.arange(BATCH)[:, None]

    def choose(generator: torch.Generator) -> tuple[Tensor, ...]:
        index, kept = sample_stratified(classes, CLASSES + 1, VECTORS, generator)
        vectors = (v.transpose(1, 2)[rows, index].reshape(-1, WIDTH) for v in (z, denoised, theirs))
        return *vectors, kept.flatten()

    ours, drawn, wanted, kept = choose(torch.Generator().manual_seed(11))  # figures have a choice of their own
    expected['cosine_student'], expected['cosine_denoised'] = (matched_cosine(v, wanted, kept) for v in (ours, drawn))
    ours, drawn, _, kept = choose(generator)
    expected['lsh'], expected['bits'] = hashing(distiller, ours, drawn, kept)
    objects = (labels < CLASSES) & (weight[:, 0] > 0)
    assert 5 < objects.sum() < objects.numel() - 5
    for name, said in (('acc_start', classify(z)), ('acc_denoised', opinion)):
        hits = (said.argmax(dim=1) == labels)[objects].float()
        expected[name] = (hits * weight[:, 0][objects]).sum() / weight[:, 0][objects].sum().clamp(min=1)

    losses = distiller.distill(
        ModelOutputs(student_maps, [logits]), ModelOutputs(teacher_maps, [teacher_logits]), annotations, None
    )
    assert_losses(losses, expected)

    for name, trained in dict(anchor='align', lsh='align', diff='diffusion.denoiser', virtual='logits', logit='logits').items():
        distiller.zero_grad()
        logits.grad = None
        losses[f'loss_dskd_{name}'].backward(retain_graph=True)
        got = {
            part
            for part in ('align', 'diffusion.denoiser')
            if any(moves(p) for p in distiller.get_submodule(part).parameters())
        }
        assert got | ({'logits'} if moves(logits) else set()) == {trained}, name


def moves(parameter: Tensor) -> bool:
    return parameter.grad is not None and bool(parameter.grad.abs().max() > 0)


def test_background_that_is_ignored_everywhere_trains_nothing_by_its_classes(teacher):
    """A batch without annotations: every loss is finite, and what rests on classes is 0."""
    distiller = build(teacher, target='label', loss_weights=dict(logit=0))
    distiller.teacher.classifiers = [TeacherClassifier(torch.randn(CLASSES, WIDTH, 1, 1), sigmoid=True)]
    target = Target(torch.zeros(BATCH, CLASSES, sum(LENGTHS)), torch.zeros(BATCH, 1, sum(LENGTHS)), torch.tensor(0.0), 1.0)
    maps = [torch.randn(BATCH, 16, *size, requires_grad=True) for size in SIZES]
    logits = torch.randn(BATCH, CLASSES, sum(LENGTHS), requires_grad=True)
    losses = distiller.distill(ModelOutputs(maps, [logits]), None, target, None)
    assert all(torch.isfinite(value) for value in losses.values())
    for name in ('anchor', 'virtual', 'lsh'):
        assert losses[f'loss_dskd_{name}'] == 0
    assert losses['loss_dskd_diff'] > 0.01
    distiller.parse_losses(losses)[0].backward()
    assert all(p.grad is not None and bool(torch.isfinite(p.grad).all()) for p in distiller.align.parameters())


@pytest.mark.parametrize('unit', ['logit', 'gradient'])
def test_a_head_without_a_linear_classifier_is_the_straight_line(teacher, unit):
    weights = dict(WEIGHTS, virtual=0, logit=0)
    distiller = without_classifier(
        build(teacher, target='label', guidance_unit=unit, loss_weights=weights, **FIRST_CONSTRUCTION)
    )
    head = nn.Conv2d(WIDTH, 4, 3, padding=1).requires_grad_(False)
    student_maps = [torch.randn(BATCH, 16, *size, requires_grad=True) for size in SIZES]

    def head_loss(maps: list[Tensor]) -> Tensor:
        """A mean over the batch."""
        return sum(head(level).tanh().square().sum() for level in maps) / BATCH

    z = distiller.align(torch.cat([level.flatten(2) for level in student_maps], dim=2)[..., None])[..., 0]
    generator = torch.Generator().manual_seed(11)
    std = z.detach().std()

    def guide(x: Tensor) -> Tensor:
        """By the sum over the batch; to move features by 1 in units of their own spread, unless it is the plain gradient."""
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            loss = sum(head(level).tanh().square().sum() for level in per_level(leaf))
            gradient = -torch.autograd.grad(loss, leaf)[0]
        if unit == 'gradient':
            return gradient * std**2
        return gradient / gradient.square().mean(dim=(1, 2), keepdim=True).sqrt() * std

    diffusion, denoised = denoise(distiller, z, z.detach(), guide, generator)
    expected = dict(anchor=head_loss(per_level(z)), **diffusion)
    expected |= dict(kl_student=expected['anchor'], kl_denoised=head_loss(per_level(denoised)))
    expected['gate'] = (expected['kl_denoised'] <= expected['kl_student']).float()
    everywhere = torch.zeros(BATCH, sum(LENGTHS), dtype=torch.long)
    index, kept = sample_stratified(everywhere, 1, VECTORS, generator)
    rows = torch.arange(BATCH)[:, None]
    chosen = [v.transpose(1, 2)[rows, index].reshape(-1, WIDTH) for v in (z, denoised)]
    expected['lsh'], expected['bits'] = hashing(distiller, *chosen, kept.flatten())
    assert_losses(distiller.distill(ModelOutputs(student_maps), None, None, head_loss), expected)


@pytest.mark.parametrize(
    'switches',
    [
        dict(),
        dict(detach=False, sampler=dict(noise='adapter')),
        dict(autoencoder=dict(latent_channels=8)),
        dict(autoencoder=dict(latent_channels=8), detach=False),
        dict(sampler=dict(guidance_point='clean'), guidance_unit='gradient'),
        dict(denoiser=dict(norm='GN')),
        dict(denoiser=dict(kernel_size=1)),
        dict(lsh=dict(magnitude=1.0, bias='median')),
    ],
    ids=str,
)
@pytest.mark.parametrize('dense', [True, False])
def test_switches_train_on_levels(teacher, switches, dense):
    weights = dict(logit=0) if dense else dict(logit=0, virtual=0)
    if not dense and switches.get('sampler', {}).get('noise') == 'adapter':
        switches = dict(switches, lsh=dict(magnitude=1.0))
    distiller = build(teacher, target='label', loss_weights=weights, **switches)
    layer = nn.Conv2d(WIDTH, CLASSES, 1)
    if dense:
        distiller.teacher.classifiers = [TeacherClassifier.from_layer(layer)]
    else:
        without_classifier(distiller)
    maps = [torch.randn(BATCH, 16, *size, requires_grad=True) for size in SIZES]
    logits = torch.randn(BATCH, CLASSES, sum(LENGTHS), requires_grad=True)
    target = Target(torch.rand(BATCH, CLASSES, sum(LENGTHS)).softmax(dim=1)) if dense else None
    observed = ModelOutputs(maps, [logits] if dense else [])
    losses = distiller.distill(observed, None, target, lambda levels: sum(layer(level).square().mean() for level in levels))
    assert all(torch.isfinite(value) for value in losses.values())
    distiller.parse_losses(losses)[0].backward()
    own = {name: p for name, p in distiller.named_parameters() if not name.startswith('student.')}
    assert not [name for name, p in own.items() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert all(moves(level) for level in maps)
