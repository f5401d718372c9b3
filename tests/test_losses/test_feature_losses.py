"""The losses on features against torch, scipy and plain loops."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from scipy.special import log_softmax
from scipy.stats import pearsonr
from torch import Tensor, nn
from torch.nn import functional as F

from dskd_mm.features.norm import BatchNorm2d
from dskd_mm.losses import AlignedFeatureLoss, ATLoss, CWDLoss, FeatureLoss, FitNetLoss, MGDLoss, PKDLoss

BATCH, STUDENT, TEACHER = 3, 4, 6
SIZES = [(4, 5), (2, 3), (1, 1)]
"""A pyramid; its top has a single location."""
IDENTITY = dict(kind='identity')

MAKERS: dict[str, Callable[..., FeatureLoss]] = {
    'fitnet': FitNetLoss,
    'at': lambda student, teacher, **kwargs: ATLoss(**kwargs),
    'cwd': CWDLoss,
    'pkd': PKDLoss,
    'mgd': MGDLoss,
    'mgd_channel': lambda student, teacher, **kwargs: MGDLoss(student, teacher, mask='channel', **kwargs),
}
VECTORS = ['fitnet', 'pkd', 'mgd_channel']


def make(name: str, student: int = STUDENT, teacher: int = TEACHER, **kwargs: Any) -> FeatureLoss:
    """A loss with the same weights each time."""
    torch.manual_seed(0)
    return MAKERS[name](student, teacher, **kwargs)


def draw(
    sizes: Sequence[tuple[int, int]] = SIZES, student: int = STUDENT, teacher: int = TEACHER, batch: int = BATCH
) -> tuple[list[Tensor], list[Tensor]]:
    """Maps of a student, which ask for a gradient, and of a teacher."""
    noise = torch.Generator().manual_seed(1)
    ours = [torch.randn(batch, student, *size, generator=noise).requires_grad_() for size in sizes]
    return ours, [0.5 + 2 * torch.randn(batch, teacher, *size, generator=noise) for size in sizes]


def dice(seed: int = 5) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


# ---------------------------------------------------------------------------------------------- what all share


@pytest.mark.parametrize('batch', [BATCH, 0])
@pytest.mark.parametrize('sizes', [SIZES, SIZES[:1]], ids=['pyramid', 'map'])
@pytest.mark.parametrize('name', MAKERS)
def test_every_parameter_and_every_level_gets_a_gradient(name: str, sizes: Sequence[tuple[int, int]], batch: int) -> None:
    loss = make(name)
    ours, theirs = draw(sizes, batch=batch)
    value = loss(ours, theirs, dice())
    value.backward()
    assert bool(value.isfinite()) and bool(value > 0) == bool(batch)
    assert [key for key, p in loss.named_parameters() if p.grad is None or not p.grad.isfinite().all()] == []
    assert [level.shape for level in ours if level.grad is None or not level.grad.isfinite().all()] == []
    assert not batch or (ours[0].grad is not None and ours[0].grad.any())


@pytest.mark.parametrize('name', ['fitnet', 'at', 'cwd', 'pkd'])
def test_a_perfect_student_loses_nothing(name: str) -> None:
    _, theirs = draw()
    align = {} if name == 'at' else dict(align=IDENTITY)
    assert float(make(name, TEACHER, **align)(theirs, theirs)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize('name', MAKERS)
def test_levels_are_summed_and_weighted(name: str) -> None:
    ours, theirs = draw()
    # Batch statistics see all levels together.
    align = {} if name == 'at' else dict(align=dict(norm=None))
    whole = make(name, loss_weight=3.0, **align)(ours, theirs, dice())
    generator, parts = dice(), make(name, loss_weight=1.0, **align)
    parts.needs_map = False
    total = sum(float(parts([a], [b], generator).detach()) for a, b in zip(ours, theirs, strict=True))
    assert float(whole.detach()) == pytest.approx(3 * total, rel=1e-4)


@pytest.mark.parametrize('name', MAKERS)
def test_bfloat16_maps_are_compared_in_float32(name: str) -> None:
    ours, theirs = ([level.detach().bfloat16() for level in maps] for maps in draw())
    plain = make(name)([level.float() for level in ours], [level.float() for level in theirs], dice())
    with torch.autocast('cpu', dtype=torch.bfloat16):
        value = make(name)(ours, theirs, dice())
    assert value.dtype == torch.float32
    assert float(value.detach()) == pytest.approx(float(plain.detach()), rel=0.05)  # convolutions are rounded


@pytest.mark.parametrize('name', MAKERS)
def test_vectors_are_compared_or_refused(name: str) -> None:
    ours, theirs = draw([(1, 1)])
    loss = make(name)
    if name in VECTORS:
        loss.check(is_map=False)
        assert loss(ours, theirs, dice()) > 0
        return
    for attempt in (lambda: loss.check(is_map=False), lambda: loss(ours, theirs, dice())):
        with pytest.raises(ValueError, match=r"'feature' has only one, a vector.*FitNetLoss") as error:
            attempt()
        assert type(loss).__name__ in str(error.value)


@pytest.mark.parametrize('name', MAKERS)
def test_levels_must_correspond(name: str) -> None:
    ours, theirs = draw()
    with pytest.raises(ValueError, match='zip'):
        make(name)(ours, theirs[:2])


@pytest.mark.parametrize(
    ('build', 'words'),
    [
        (lambda: ATLoss(power=0.5), ['power of ATLoss', '0.5']),
        (lambda: CWDLoss(4, 4, temperature=0), ['temperature of CWDLoss', '0']),
        (lambda: MGDLoss(4, 4, mask_ratio=1.0), ['mask_ratio of MGDLoss', '1.0']),
        (lambda: MGDLoss(4, 4, mask='pixel'), ['mask of MGDLoss', "'pixel'"]),
        (lambda: PKDLoss(4, 4, loss_weight=-1), ['loss_weight of PKDLoss', '-1']),
        (lambda: FitNetLoss(4, 6, align=IDENTITY), ['equal channels', '4', '6']),
    ],
)
def test_bad_arguments(build: Callable[[], FeatureLoss], words: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        build()
    assert [word for word in words if word not in str(error.value)] == []


@pytest.mark.parametrize(
    ('loss', 'parts'),
    [
        (FitNetLoss(4, 4), [nn.Conv2d, BatchNorm2d]),
        (FitNetLoss(4, 6), [nn.Conv2d, BatchNorm2d]),
        (FitNetLoss(4, 6, align={}), [nn.Conv2d, BatchNorm2d]),
        (CWDLoss(4, 4), []),
        (CWDLoss(4, 6), [nn.Conv2d, nn.Identity]),
        (PKDLoss(4, 4, align=dict(norm='GN')), [nn.Conv2d, nn.GroupNorm]),
    ],
)
def test_the_alignment_by_default_and_by_choice(loss: AlignedFeatureLoss, parts: list[type]) -> None:
    assert [type(part) for part in loss.align.layers] == parts


# ----------------------------------------------------------------------------------------------------- FitNet


def test_fitnet_is_the_error_after_the_regressor() -> None:
    (ours, *_), (theirs, *_) = draw()
    loss = make('fitnet')
    convolution, norm = loss.align.layers
    regressed = F.batch_norm(F.conv2d(ours, convolution.weight), None, None, norm.weight, norm.bias, training=True)
    expected = 100 * F.mse_loss(regressed, theirs)
    torch.testing.assert_close(loss([ours], [theirs]), expected, rtol=1e-5, atol=1e-6)


# --------------------------------------------------------------------------------------------------------- AT


@pytest.mark.parametrize('power', [1.0, 2.0, 3.0])
def test_attention_is_the_plain_loop(power: float) -> None:
    (ours, *_), (theirs, *_) = draw(SIZES[:1])

    def attention(image: list[list[list[float]]]) -> list[float]:
        height, width = SIZES[0]
        cells = [sum(abs(c[i][j]) ** power for c in image) / len(image) for i in range(height) for j in range(width)]
        length = math.sqrt(sum(cell**2 for cell in cells))
        return [cell / length for cell in cells]

    differences = [
        (p - q) ** 2
        for a, b in zip(ours.tolist(), theirs.tolist(), strict=True)
        for p, q in zip(attention(a), attention(b), strict=True)
    ]
    expected = 1000 * sum(differences) / len(differences)
    assert float(ATLoss(power)([ours], [theirs]).detach()) == pytest.approx(expected, rel=1e-4)


def test_a_dead_map_gives_attention_a_finite_gradient() -> None:
    _, theirs = draw()
    dead = [torch.zeros(BATCH, STUDENT, *size, requires_grad=True) for size in SIZES]
    ATLoss()(dead, theirs).backward()
    assert all(level.grad is not None and bool(level.grad.isfinite().all()) for level in dead)


# -------------------------------------------------------------------------------------------------------- CWD


@pytest.mark.parametrize('temperature', [1.0, 4.0])
def test_cwd_is_the_divergence_over_locations(temperature: float) -> None:
    (ours, *_), (theirs, *_) = draw(SIZES[:1], student=TEACHER)
    total = 0.0
    for image in range(BATCH):
        for channel in range(TEACHER):
            p, q = (log_softmax(maps.detach()[image, channel].numpy().reshape(-1) / temperature) for maps in (ours, theirs))
            total += sum(math.exp(b) * (b - a) for a, b in zip(p.tolist(), q.tolist(), strict=True))
    expected = 2.5 * temperature**2 * total / (BATCH * TEACHER)
    value = CWDLoss(TEACHER, TEACHER, temperature, loss_weight=2.5)([ours], [theirs])
    assert float(value.detach()) == pytest.approx(expected, rel=1e-4)


# -------------------------------------------------------------------------------------------------------- PKD


@pytest.mark.parametrize('size', SIZES, ids=str)
def test_pkd_is_one_minus_the_correlation_of_scipy(size: tuple[int, int]) -> None:
    ours, theirs = draw([size], student=TEACHER)
    channels = zip(*(maps[0].detach().transpose(0, 1).flatten(1).numpy() for maps in (ours, theirs)), strict=True)
    correlations = [pearsonr(a, b).statistic for a, b in channels]
    expected = 6 * (1 - sum(correlations) / TEACHER)
    assert float(make('pkd', TEACHER)(ours, theirs).detach()) == pytest.approx(expected, rel=1e-4)


def test_pkd_ignores_scale_and_offset_of_a_channel() -> None:
    (ours, *_), (theirs, *_) = draw(student=TEACHER)
    loss = make('pkd', TEACHER)
    scale, offset = torch.rand(2, 1, TEACHER, 1, 1) + 0.5
    torch.testing.assert_close(loss([ours * scale + offset], [theirs * 3 - 1]), loss([ours], [theirs]), rtol=1e-4, atol=1e-4)


def test_dead_channels_and_single_values_give_pkd_a_finite_gradient() -> None:
    (ours, *_), (theirs, *_) = draw(student=TEACHER)
    dead = (ours.detach() * torch.tensor([0.0, 1, 1, 1, 1, 1])[:, None, None]).requires_grad_()
    single = torch.randn(1, TEACHER, 1, 1, requires_grad=True)
    loss = make('pkd', TEACHER)
    (loss([dead], [theirs]) + loss([single], [torch.randn(1, TEACHER, 1, 1)])).backward()
    assert all(level.grad is not None and bool(level.grad.isfinite().all()) for level in (dead, single))


# -------------------------------------------------------------------------------------------------------- MGD


@pytest.mark.parametrize('mask', ['location', 'channel'])
def test_mgd_is_a_literal_transcription(mask: str) -> None:
    (ours, *_), (theirs, *_) = draw(SIZES[:1])
    torch.manual_seed(0)
    loss = MGDLoss(STUDENT, TEACHER, mask_ratio=0.5, mask=mask)
    (align, _), (first, _, second) = loss.align.layers, loss.generation
    shape = (BATCH, 1, *SIZES[0]) if mask == 'location' else (BATCH, TEACHER, 1, 1)
    kept = (torch.rand(shape, generator=dice()) >= 0.5).float()
    hidden = F.conv2d(ours, align.weight, align.bias) * kept
    hidden = F.conv2d(hidden, first.weight, first.bias, padding=1).clamp(min=0)
    restored = F.conv2d(hidden, second.weight, second.bias, padding=1)
    expected = 2e-5 * sum(float(((a - b) ** 2).sum()) for a, b in zip(restored.detach(), theirs, strict=True)) / BATCH
    assert float(loss([ours], [theirs], dice()).detach()) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize('mask', ['location', 'channel'])
@pytest.mark.parametrize('ratio', [0.0, 0.15, 0.65])
def test_mgd_hides_the_share_it_is_told_from_all_channels_or_locations(ratio: float, mask: str) -> None:
    seen: list[Tensor] = []
    loss = MGDLoss(50, 50, ratio, mask)
    loss.generation.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    loss([torch.ones(40, 50, 7, 7)], [torch.ones(40, 50, 7, 7)], dice())
    dims = 1 if mask == 'location' else (2, 3)
    assert bool((seen[0] == seen[0].amax(dim=dims, keepdim=True)).all())
    assert float((seen[0] == 0).float().mean()) == pytest.approx(ratio, abs=0.04)


def test_the_mask_follows_from_its_generator_alone() -> None:
    ours, theirs = draw()
    loss = make('mgd')
    torch.manual_seed(1)
    first = loss(ours, theirs, dice(3))
    torch.manual_seed(2)
    assert torch.equal(loss(ours, theirs, dice(3)), first)
    assert not torch.equal(loss(ours, theirs, dice(4)), first)
