"""SoKD's feature augmentation: operators against scipy, gradients against finite differences, Adam against torch's."""

import copy
import math
from itertools import combinations

import numpy as np
import pytest
import torch
from scipy import ndimage
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from dskd_mm.features import FeatureAugmentation, augment
from dskd_mm.features.augment import OPERATORS, SUB_POLICIES, operate, resample

NAMES = list(OPERATORS)
AFFINE = NAMES[:5]
TABLE = dict(  # what the paper's summary says; shuffle is ours
    shear_x=(-0.3, 0.3),
    shear_y=(-0.3, 0.3),
    translate_x=(-0.45, 0.45),
    translate_y=(-0.45, 0.45),
    rotate=(-30, 30),
    cutout=(0, 0.2),
    noise=(0, 0.1),
    shuffle=(0, 0.5),
    drop=(0, 0.5),
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def maps(batch: int = 2, channels: int = 6, height: int = 7, width: int = 10, seed: int = 1) -> Tensor:
    return torch.randn(batch, channels, height, width, generator=generator(seed))


def strengths(**values: float) -> Tensor:
    return torch.tensor([float(values.get(name, 0)) for name in NAMES])


def only(name: str, magnitude: float, **kwargs: float) -> FeatureAugmentation:
    """An augmentation that always draws one pair, of which it always applies one operator and never the other."""
    module = FeatureAugmentation(**kwargs)
    index = NAMES.index(name)
    pair = next(pair for pair in SUB_POLICIES if index in pair)
    row = module.policy[SUB_POLICIES.index(pair)]
    side = pair.index(index)
    row[0], row[1:3], row[1 + side], row[3 + side] = 1e4, 0.0, 1.0, magnitude
    return module


def by_scipy(feature: Tensor, name: str, strength: float) -> Tensor:
    """An affine operator in pixels, rows first, about the centre of the map."""
    height, width = feature.shape[2:]
    matrix, shift = np.eye(2), np.zeros(2)  # from (y, x) of the result to that of the source
    angle = math.radians(strength)
    if name == 'shear_x':
        matrix[1, 0] = strength
    elif name == 'shear_y':
        matrix[0, 1] = strength
    elif name == 'rotate':
        matrix = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]])
    elif name == 'translate_x':
        shift[1] = -strength * width
    else:
        shift[0] = -strength * height
    centre = np.array([height - 1, width - 1]) / 2
    offset = centre - matrix @ centre + shift
    found = [
        ndimage.affine_transform(channel, matrix, offset, order=1, mode='grid-constant')
        for channel in feature.double().flatten(0, 1).numpy()
    ]
    return torch.from_numpy(np.stack(found)).reshape(feature.shape)


def test_the_operators_and_pairs_are_those_of_the_paper() -> None:
    assert {name: tuple(map(float, ends)) for name, ends in TABLE.items()} == OPERATORS
    assert len(SUB_POLICIES) == 36 and set(SUB_POLICIES) == set(combinations(range(9), 2))


@pytest.mark.parametrize('magnitude', [0.0, 0.3, 1.0])
@pytest.mark.parametrize('name', AFFINE)
def test_affine_operators_agree_with_scipy_over_their_range(name: str, magnitude: float) -> None:
    feature = maps()
    low, high = TABLE[name]
    (found,) = only(name, magnitude)([feature], generator())
    torch.testing.assert_close(found.double(), by_scipy(feature, name, low + (high - low) * magnitude), rtol=0, atol=2e-5)
    assert (found - feature).abs().max() > 0.1


def test_directions() -> None:
    feature = torch.zeros(1, 1, 5, 5)
    feature[0, 0, 1, 2] = 1  # above the centre
    for name, strength, (y, x) in [('translate_x', 0.2, (1, 3)), ('translate_y', 0.4, (3, 2)), ('rotate', 90, (2, 3))]:
        found = resample(feature, strengths(**{name: strength})[:5])
        assert found[0, 0].argmax() == 5 * y + x, name


def test_affine_operators_are_differentiable() -> None:
    feature = maps(1, 2, 5, 6).double().requires_grad_()
    # All of them at once, away from the kinks of the interpolation, which lie at whole locations.
    at = torch.tensor([0.05, -0.08, 0.037, 0.021, 7.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(resample, (feature, at), eps=1e-7, atol=1e-4)


def test_cutout_removes_one_rectangle_of_its_size() -> None:
    feature = torch.ones(200, 2, 20, 30)
    (found,) = only('cutout', 0.5)([feature], generator())  # 0.1 of the side: 2 rows and 3 columns
    sizes = set()
    for image in found:
        gone = (image[0] == 0).nonzero()
        assert torch.equal(image[0], image[1]) and set(image.unique().tolist()) <= {0.0, 1.0}
        if not len(gone):  # in a corner
            continue
        size = gone.amax(dim=0) - gone.amin(dim=0) + 1
        assert len(gone) == int(size.prod())  # a full rectangle
        sizes.add(tuple(size.tolist()))
    assert max(sizes) == (2, 3) and len(sizes) > 1


def test_noise_has_the_standard_deviation_of_its_strength() -> None:
    feature = torch.full((8, 8, 32, 32), 5.0)
    for magnitude in (0.5, 1.0):
        (found,) = only('noise', magnitude)([feature], generator())
        assert float((found - feature).std()) == pytest.approx(0.1 * magnitude, rel=0.02)


@pytest.mark.parametrize(('magnitude', 'moved'), [(0.0, 0), (0.4, 4), (1.0, 10)])
def test_shuffle_moves_a_share_of_the_channels(magnitude: float, moved: int) -> None:
    feature = torch.arange(20.0).reshape(1, 20, 1, 1).expand(3, -1, 4, 4)
    (found,) = only('shuffle', magnitude)([feature], generator())
    channels = found[0, :, 0, 0]
    assert torch.equal(found, channels[None, :, None, None].expand_as(found))
    torch.testing.assert_close(channels.sort().values, torch.arange(20.0))
    assert int((channels.round() != torch.arange(20.0)).sum()) == moved


def test_drop_removes_a_share_of_the_channels_and_does_not_rescale() -> None:
    feature = torch.ones(50, 60, 2, 2)
    (found,) = only('drop', 1.0)([feature], generator())
    assert set(found.unique().tolist()) == {0.0, 1.0}
    kept = found[:, :, 0, 0]
    assert torch.equal(found, kept[..., None, None].expand_as(found))
    assert float(kept.mean()) == pytest.approx(0.5, abs=0.03)
    assert not torch.equal(kept[0], kept[1])


@pytest.mark.parametrize('name', NAMES[5:])
def test_the_derivative_by_the_strength(name: str) -> None:
    """That of the noise is true, that of an operator which jumps is 1 at each element; the forward pass has no trace of it."""
    feature = maps().requires_grad_()
    at = strengths(**{name: 0.31 * TABLE[name][1]}).requires_grad_()
    weight = maps(seed=5)
    found = operate(feature, at, generator())
    gradient, by_feature = torch.autograd.grad((weight * found).sum(), (at, feature))
    expected = weight.sum()
    if name == 'noise':
        expected = (weight * (found - feature)).sum().detach() / at.detach()[NAMES.index(name)]
    torch.testing.assert_close(gradient[NAMES.index(name)], expected, rtol=1e-3, atol=1e-3)
    assert by_feature.abs().max() > 0


def test_no_strength_changes_nothing() -> None:
    feature = maps()
    torch.testing.assert_close(operate(feature, strengths(), generator()), feature, rtol=0, atol=1e-5)


def test_initial_values() -> None:
    assert torch.equal(FeatureAugmentation().policy, torch.tensor([[1e-3, 0.5, 0.5, 0.5, 0.5]]).expand(36, -1))


def test_sub_policies_and_gates_are_drawn_with_their_probabilities() -> None:
    module = FeatureAugmentation()
    module.policy[:, 0] = torch.linspace(-2, 2, 36)
    module.policy[:, 1], module.policy[:, 2] = 0.2, 0.9
    module.policy[:, 3:] = 0.9  # no strength is 0
    source, draws, counts, applied = generator(), 3000, torch.zeros(36), torch.zeros(2)
    for _ in range(draws):
        weight, found, gates = module._draw(module.policy, 4, source)
        assert float(weight) == 1 and set(gates.unique().tolist()) <= {0.0, 1.0}
        counts[SUB_POLICIES.index(tuple(int(strength.nonzero()) for strength in found))] += 1
        applied += gates.mean(dim=1)
    expected = torch.linspace(-2, 2, 36).softmax(dim=0) * draws
    assert float(((counts - expected) ** 2 / expected).sum()) < 67  # chi-squared with 35 degrees of freedom: 99.9 %
    torch.testing.assert_close(applied / draws, torch.tensor([0.2, 0.9]), rtol=0, atol=0.02)


def test_gradients_of_the_policy_against_a_loop() -> None:
    """One draw written down again from its uniform numbers; the loss is linear in the result."""
    module, feature, weight = FeatureAugmentation(), maps(batch=3), maps(batch=3, seed=5)
    index = SUB_POLICIES.index((NAMES.index('translate_x'), NAMES.index('rotate')))
    module.policy[index] = torch.tensor([4.0, 0.6, 0.7, 0.8, 0.3])
    policy = module.policy.clone().requires_grad_()
    (found,) = module([feature], generator(4), policy)
    (gradient,) = torch.autograd.grad((weight * found).sum(), policy)

    source, temperature = generator(4), 0.5
    noise = [-math.log(-math.log(u)) for u in torch.rand(36, generator=source).tolist()]
    scores = [(a + g) / temperature for a, g in zip(module.policy[:, 0].tolist(), noise, strict=True)]
    soft = [math.exp(s) / sum(math.exp(other) for other in scores) for s in scores]
    assert soft.index(max(soft)) == index
    uniform = torch.rand(2, 3, generator=source).tolist()

    def apply(x: Tensor, name: str, magnitude: float) -> Tensor:
        low, high = TABLE[name]
        return by_scipy(x, name, low + (high - low) * magnitude)

    def result(i: int, chances: tuple[float, float], magnitudes: tuple[float, float], gates: tuple[float, float]) -> Tensor:
        x = feature[i : i + 1].double()
        for name, gate, magnitude in zip(('translate_x', 'rotate'), gates, magnitudes, strict=True):
            x = x + gate * (apply(x, name, magnitude) - x)
        return x

    def logit(p: float) -> float:
        return math.log(p) - math.log(1 - p)

    beta, m = (0.6, 0.7), (0.8, 0.3)
    expected, total = torch.zeros(36, 5), 0.0
    for i in range(3):
        z = [(logit(beta[k]) + logit(uniform[k][i])) / temperature for k in range(2)]
        gates = tuple(float(value > 0) for value in z)
        part = weight[i : i + 1].double()
        out = result(i, beta, m, gates)
        torch.testing.assert_close(found[i : i + 1].double(), out, rtol=0, atol=3e-5)
        total += float((part * (out - feature[i : i + 1].double())).sum())
        for k in range(2):
            up, down = (tuple(g + s * (j == k) for j, g in enumerate(gates)) for s in (1e-3, -1e-3))
            slope = float((part * (result(i, beta, m, up) - result(i, beta, m, down))).sum()) / 2e-3
            sigmoid = 1 / (1 + math.exp(-z[k]))
            expected[index, 1 + k] += slope * sigmoid * (1 - sigmoid) / temperature / (beta[k] * (1 - beta[k]))
            up, down = (tuple(v + s * (j == k) for j, v in enumerate(m)) for s in (1e-6, -1e-6))
            expected[index, 3 + k] += float((part * (result(i, beta, up, gates) - result(i, beta, down, gates))).sum()) / 2e-6
    for j in range(36):
        expected[j, 0] = total * soft[index] * ((j == index) - soft[j]) / temperature
    torch.testing.assert_close(gradient[:, 0], expected[:, 0], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(gradient[index, 1:], expected[index, 1:], rtol=0.02, atol=0.05)
    assert not gradient[[i for i in range(36) if i != index], 1:].any()
    assert expected[index].abs().min() > 0.1  # or nothing was compared


def test_the_search_is_that_of_torchs_adam() -> None:
    module, source = FeatureAugmentation(lr=1e-2, weight_decay=0.1), generator()
    reference = torch.nn.Parameter(module.policy.clone())
    optimizer = torch.optim.Adam([reference], lr=1e-2, betas=(0.5, 0.999), weight_decay=0.1)
    for _ in range(5):
        reference.grad = torch.randn(36, 5, generator=source)
        module._update(reference.grad.clone())
        optimizer.step()
        torch.testing.assert_close(module.policy, reference.detach(), rtol=1e-5, atol=1e-6)


def test_the_search_differentiates_half_the_mean_squared_error(monkeypatch: pytest.MonkeyPatch) -> None:
    module, teacher, student = FeatureAugmentation(), [maps(), maps(height=3, width=4)], [maps(seed=8), maps(2, 6, 3, 4, 9)]
    policy = module.policy.clone().requires_grad_()
    augmented = module(teacher, generator(2), policy)
    sum(((a - b) ** 2).sum() / a.numel() / 2 for a, b in zip(augmented, student, strict=True)).backward()
    seen: list[Tensor] = []
    monkeypatch.setattr(augment, 'mean_over_ranks', lambda tensor: seen.append(tensor) or tensor)
    before = module.policy.clone()
    found = module.search(teacher, [level.requires_grad_() for level in student], generator(2))
    (gradient,) = seen  # what ranks average
    torch.testing.assert_close(gradient, policy.grad)
    assert not any(level.requires_grad for level in found) and all(level.grad is None for level in student)
    for ours, theirs in zip(found, augmented, strict=True):
        assert torch.equal(ours, theirs)
    assert not torch.equal(module.policy, before) and int(module.updates) == 1


def test_the_search_brings_the_feature_closer_to_the_students() -> None:
    """A student that is the teacher wants no augmentation: β falls. One that is shifted wants the translation."""
    feature, source = maps(4, 4, 8, 8), generator()
    module = FeatureAugmentation(lr=0.02, weight_decay=0.0)
    for _ in range(200):
        module.search([feature], [feature], source)
    assert float(module.probability) < 0.4
    assert float(module.policy[:, 1:].min()) >= 0 and float(module.policy[:, 1:].max()) <= 1

    smooth = torch.nn.functional.avg_pool2d(feature, 5, stride=1, padding=2)
    shifted = resample(smooth, strengths(translate_x=0.225)[:5])
    module = only('translate_x', 0.5, lr=0.02, weight_decay=0.0)  # a magnitude of 0.5 is no translation, 0.75 is the wanted one
    for _ in range(60):
        module.search([smooth], [shifted], source)
    row = module.policy[SUB_POLICIES.index(next(pair for pair in SUB_POLICIES if NAMES.index('translate_x') in pair))]
    assert float(row[3 + 1]) == pytest.approx(0.75, abs=0.05)


def test_a_batch_that_is_not_finite_does_no_lasting_harm() -> None:
    module = FeatureAugmentation()
    module.search([maps()], [torch.full_like(maps(), torch.nan)], generator())
    assert module.policy.isfinite().all() and module.moments.isfinite().all()


def test_a_checkpoint_continues_the_search() -> None:
    module = FeatureAugmentation(lr=0.02)
    for seed in range(3):
        module.search([maps()], [maps(seed=8)], generator(seed))
    resumed = FeatureAugmentation(lr=0.02)
    resumed.load_state_dict(copy.deepcopy(module.state_dict()))
    for one in (module, resumed):
        one.search([maps()], [maps(seed=8)], generator(9))
    assert torch.equal(module.policy, resumed.policy) and not list(module.parameters())


def test_half_precision_is_augmented_in_single(dtype: torch.dtype = torch.bfloat16) -> None:
    with torch.autocast('cpu', dtype=dtype):
        (found,) = only('rotate', 1.0)([maps().to(dtype)], generator())
    torch.testing.assert_close(found.double(), by_scipy(maps().to(dtype).float(), 'rotate', 30), rtol=0, atol=2e-5)


def test_nothing_waits_for_the_device() -> None:
    with FakeTensorMode():  # a tensor without values: reading one raises
        try:
            nn.functional.one_hot(torch.zeros(2).argmax(), 2)
        except DataDependentOutputException:
            pytest.skip('the one_hot of this torch itself reads values, on the CPU alone')
        module, feature = FeatureAugmentation(), torch.randn(2, 4, 5, 6)
        assert module.search([feature], [feature.clone()], None)[0].shape == feature.shape


def test_a_temperature_that_cannot_be() -> None:
    with pytest.raises(ValueError, match='temperature of FeatureAugmentation must be positive, but got 0'):
        FeatureAugmentation(temperature=0)
