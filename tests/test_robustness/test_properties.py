"""Shapes and masks of the core hold for any input, not just for those that somebody thought of."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from dskd_mm.diffusion import DDIMSchedule, TeacherGuidedSampler
from dskd_mm.features import Pyramid, match_space, per_location
from dskd_mm.features.pyramid import fold_priors, unfold_priors
from dskd_mm.guidance import TeacherClassifier
from dskd_mm.losses import KDLoss, LSHDistillLoss
from dskd_mm.sites.annotations import location_classes, sample_stratified
from dskd_mm.structures import Target

# Derandomised: what passes here passes there. Machines that test are shared, so no example has a deadline.
properties = settings(
    max_examples=100, deadline=None, derandomize=True, database=None, suppress_health_check=[HealthCheck.too_slow]
)
seeds = st.integers(0, 2**31 - 1)
small = st.integers(1, 5)
sizes = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=4)


def randn(seed: int, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def weights_of(seed: int, *shape: int) -> Tensor:
    """Weights 0, 1 and 2, zeros among them."""
    return torch.randint(3, shape, generator=torch.Generator().manual_seed(seed)).float()


def one_hot(seed: int, batch: int, classes: int, *rest: int) -> Tensor:
    labels = torch.randint(classes, (batch, *rest), generator=torch.Generator().manual_seed(seed))
    return F.one_hot(labels, classes).movedim(-1, 1).float()


# ----------------------------------------------------------------------------------------------------------------- the pyramid


@properties
@given(sizes, small, small, seeds)
def test_what_is_packed_can_be_taken_out(sizes: list[tuple[int, int]], batch: int, channels: int, seed: int) -> None:
    maps = [randn(seed + i, batch, channels, *size) for i, size in enumerate(sizes)]
    pyramid, packed = Pyramid.of(maps), Pyramid.pack(maps)
    assert packed.shape == (batch, channels, sum(height * width for height, width in sizes))
    for level, original in zip(pyramid.unpack(packed), maps, strict=True):
        assert torch.equal(level, original)
    assert torch.equal(Pyramid.pack(pyramid.unpack(packed)), packed)


@properties
@given(sizes, small, small, small, seeds)
def test_levels_are_mapped_one_by_one(sizes: list[tuple[int, int]], batch: int, channels: int, outputs: int, seed: int) -> None:
    maps = [randn(seed + i, batch, channels, *size) for i, size in enumerate(sizes)]
    kernels = [randn(seed - i, outputs, channels, 3, 3) for i in range(len(sizes))]

    def convolve(kernel: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda level: F.conv2d(level, kernel, padding=1)

    pyramid, packed = Pyramid.of(maps), Pyramid.pack(maps)
    each = pyramid.unpack(pyramid.map([convolve(kernel) for kernel in kernels], packed))
    shared = pyramid.unpack(pyramid.map(convolve(kernels[0]), packed))
    for i, level in enumerate(maps):
        torch.testing.assert_close(each[i], F.conv2d(level, kernels[i], padding=1))
        torch.testing.assert_close(shared[i], F.conv2d(level, kernels[0], padding=1))


@properties
@given(sizes, small, small, small, seeds)
def test_a_pointwise_module_treats_every_location_alike(
    sizes: list[tuple[int, int]], batch: int, channels: int, outputs: int, seed: int
) -> None:
    maps = [randn(seed + i, batch, channels, *size) for i, size in enumerate(sizes)]
    kernel = randn(seed, outputs, channels, 1, 1)
    packed = per_location(lambda x: F.conv2d(x, kernel), Pyramid.pack(maps))
    for level, original in zip(Pyramid.of(maps).unpack(packed), maps, strict=True):
        torch.testing.assert_close(level, F.conv2d(original, kernel), rtol=1e-4, atol=1e-5)


@properties
@given(small, small, st.tuples(small, small), st.tuples(small, small), seeds)
def test_maps_are_resized_to_any_size(
    batch: int, channels: int, size: tuple[int, int], wanted: tuple[int, int], seed: int
) -> None:
    feature = randn(seed, batch, channels, *size)
    resized = match_space(feature, wanted)
    assert resized.shape == (batch, channels, *wanted)
    # What is averaged and interpolated lies between what was there, and a constant map stays one.
    assert resized.min() >= feature.min() - 1e-5 and resized.max() <= feature.max() + 1e-5
    torch.testing.assert_close(match_space(torch.full_like(feature, 3.0), wanted), torch.full_like(resized, 3.0))
    assert match_space(feature, size) is feature
    # By whole factors, a shrunk map is the mean of its blocks.
    large = randn(seed + 1, batch, channels, 2 * size[0], 3 * size[1])
    blocks = large.unflatten(3, (size[1], 3)).unflatten(2, (size[0], 2)).mean(dim=(3, 5))
    torch.testing.assert_close(match_space(large, size), blocks)


# ----------------------------------------------------------------------------------------------------------------- the targets


@properties
@given(st.lists(st.integers(0, 7), min_size=1, max_size=4), small, st.integers(2, 5), st.booleans(), seeds)
def test_a_target_is_cut_into_levels(lengths: list[int], batch: int, classes: int, weighted: bool, seed: int) -> None:
    total = sum(lengths)
    weight = weights_of(seed, batch, 1, total) if weighted else None
    target = Target(one_hot(seed, batch, classes, total), weight, torch.tensor(7.0), focus=0.5, background=True)
    pieces = target.split(lengths)
    assert torch.equal(torch.cat([piece.probability for piece in pieces], dim=2), target.probability)
    for piece, length in zip(pieces, lengths, strict=True):
        assert piece.probability.shape == (batch, classes, length)
        assert (piece.weight is None) == (weight is None)
        # All that concerns the whole stays with each.
        assert (piece.avg_factor, piece.focus, piece.background) == (target.avg_factor, 0.5, True)
    if weight is not None:
        assert torch.equal(torch.cat([piece.weight for piece in pieces if piece.weight is not None], dim=2), weight)


@properties
@given(small, st.integers(2, 5), st.integers(0, 6), st.sampled_from(['none', 'weight', 'count']), seeds)
def test_losses_are_divided_by_what_counts(batch: int, classes: int, length: int, kind: str, seed: int) -> None:
    weight = weights_of(seed, batch, 1, length) if kind == 'weight' else None
    count = torch.tensor(float(seed % 9)) if kind == 'count' else None
    normalizer = Target(torch.zeros(batch, classes, length), weight, count).normalizer()
    expected = {'none': batch * length, 'weight': 0 if weight is None else float(weight.sum()), 'count': seed % 9}[kind]
    assert normalizer.shape == () and float(normalizer) == max(expected, 1)


@properties
@given(small, st.integers(2, 5), st.integers(1, 6), st.booleans(), seeds)
def test_what_weighs_nothing_does_not_matter(batch: int, classes: int, length: int, sigmoid: bool, seed: int) -> None:
    weight = weights_of(seed, batch, 1, length)
    label = Target(one_hot(seed, batch, classes, length), weight)
    student, teacher = randn(seed, batch, classes, length), randn(seed + 1, batch, classes, length)
    other = torch.where(weight > 0, student, randn(seed + 2, batch, classes, length))
    loss = KDLoss(2.0)(student.requires_grad_(), teacher, label, sigmoid)
    torch.testing.assert_close(loss, KDLoss(2.0)(other, teacher, label, sigmoid))
    (gradient,) = torch.autograd.grad(loss, student)
    assert not gradient[(weight == 0).expand_as(gradient)].any()
    assert loss >= -1e-5 and torch.isfinite(loss)


# ------------------------------------------------------------------------------------------------------- the choice of vectors


@properties
@given(small, st.integers(1, 12), st.integers(1, 4), st.data(), seeds)
def test_locations_are_chosen_once_and_ignored_ones_last(
    batch: int, length: int, classes: int, data: st.DataObject, seed: int
) -> None:
    row = st.lists(st.integers(-1, classes - 1), min_size=length, max_size=length)
    labels = torch.tensor(data.draw(st.lists(row, min_size=batch, max_size=batch)))
    count = data.draw(st.integers(1, length))
    index, weight = sample_stratified(labels, classes, count, torch.Generator().manual_seed(seed))
    assert index.shape == weight.shape == (batch, count)
    chosen = labels.gather(1, index)
    assert torch.equal(weight > 0, chosen >= 0)
    for row, picked, valid in zip(index.tolist(), chosen.tolist(), (labels >= 0).sum(dim=1).tolist(), strict=True):
        assert len(set(row)) == count
        assert sum(label >= 0 for label in picked) == min(count, valid)
    again, _ = sample_stratified(labels, classes, count, torch.Generator().manual_seed(seed))
    assert torch.equal(index, again)


@properties
@given(small, st.integers(1, 4), st.integers(1, 6), st.integers(1, 3), seeds)
def test_a_location_has_the_class_of_its_predictions(batch: int, classes: int, length: int, anchors: int, seed: int) -> None:
    drawn = torch.randint(-1, classes + 1, (batch, length, anchors), generator=torch.Generator().manual_seed(seed))
    probability = torch.stack([(drawn == k).float() for k in range(classes)], dim=1).flatten(2)
    weight = (drawn >= 0).float().flatten(1)[:, None]
    found = location_classes(Target(probability, weight), length)
    for image in range(batch):
        for place in range(length):
            counted = [label for label in drawn[image, place].tolist() if label >= 0]
            named = [label for label in counted if label < classes]
            assert found[image, place] == (min(named) if named else classes if counted else -1)


# -------------------------------------------------------------------------------------------------------------------- the hash


@properties
@given(st.integers(0, 6), small, seeds)
def test_a_vector_of_weight_two_counts_twice(count: int, channels: int, seed: int) -> None:
    feature, target = randn(seed, count, channels), randn(seed + 1, count, channels)
    weight = weights_of(seed, count)
    loss = LSHDistillLoss(channels, bits=16, std=1.0, bias='zero', magnitude=0.5)
    value, agreement = loss(feature.requires_grad_(), target, weight)
    times = weight.long()
    if weight.sum() == 0:
        assert value == 0 and agreement == 0
    else:
        repeated, _ = loss(feature.repeat_interleave(times, dim=0), target.repeat_interleave(times, dim=0))
        torch.testing.assert_close(value, repeated)
        assert 0 <= agreement <= 1 + 1e-6
    (gradient,) = torch.autograd.grad(value, feature)
    assert gradient.shape == feature.shape and not gradient[weight == 0].any()


@properties
@given(st.integers(1, 6), small, st.sampled_from(['mean', 'median']), seeds)
def test_the_centre_of_the_hash_heeds_the_weights(count: int, channels: int, bias: str, seed: int) -> None:
    target, weight = randn(seed, count, channels), weights_of(seed, count).clamp(max=1)
    others = torch.where(weight[:, None] > 0, target, 100 * randn(seed + 1, count, channels))
    centers = []
    for vectors in (target, others):
        loss = LSHDistillLoss(channels, bits=8, std=1.0, bias=bias).train()
        loss(vectors, vectors, weight)
        centers.append(loss.center)
        assert torch.isfinite(loss.center).all() and int(loss.num_batches) == int(weight.any())
    torch.testing.assert_close(*centers)


# --------------------------------------------------------------------------------------------------------------- the diffusion


@properties
@given(st.integers(1, 1000), st.integers(1, 30), st.floats(0.01, 1.0))
def test_timesteps_fall_from_the_start_to_the_end(train_steps: int, steps: int, start: float) -> None:
    schedule = DDIMSchedule(train_steps)
    if int(train_steps * start) // steps < 1:
        with pytest.raises(ValueError, match='do not fit'):
            schedule.timesteps(steps, start)
        return
    found = schedule.timesteps(steps, start)
    assert len(found) == steps and found == sorted(set(found), reverse=True)
    assert found[-1] == 0 and found[0] < max(train_steps * start, 1)


@properties
@given(small, small, st.lists(small, max_size=2), st.integers(0, 999), seeds)
def test_noise_that_is_known_can_be_taken_away(batch: int, channels: int, rest: list[int], timestep: int, seed: int) -> None:
    schedule = DDIMSchedule()
    clean = randn(seed, batch, channels, *rest, dtype=torch.float64)
    noise = randn(seed + 1, batch, channels, *rest, dtype=torch.float64)
    noisy = schedule.add_noise(clean, noise, timestep)
    assert noisy.shape == clean.shape
    torch.testing.assert_close(schedule.predict_clean(noisy, noise, timestep), clean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(schedule.step(noisy, noise, timestep, None), clean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        schedule.step(noisy, noise, timestep, timestep // 2),
        schedule.add_noise(clean, noise, timestep // 2),
        rtol=1e-4,
        atol=1e-5,
    )
    # One timestep for all and the same for each are the same.
    each = torch.full((batch,), timestep)
    torch.testing.assert_close(schedule.add_noise(clean, noise, each), noisy, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(schedule.predict_clean(noisy, noise, each), clean, rtol=1e-4, atol=1e-5)


@properties
@given(st.tuples(small, small), st.lists(small, max_size=2), st.integers(1, 8), st.floats(0.1, 0.9), st.booleans(), seeds)
def test_a_perfect_denoiser_finds_the_clean_feature(
    shape: tuple[int, int], rest: list[int], steps: int, start: float, guided: bool, seed: int
) -> None:
    clean, noise = randn(seed, *shape, *rest), randn(seed + 1, *shape, *rest)
    sampler, trajectory = TeacherGuidedSampler(steps=steps, start=start, scale=2.0), []
    guidance = (lambda x: torch.zeros_like(x)) if guided else None
    found = sampler(lambda x, t: noise, DDIMSchedule(), clean, noise, guidance, trajectory=trajectory)
    assert found.shape == clean.shape and found.dtype == clean.dtype and len(trajectory) == steps
    for one in (found, *trajectory):
        torch.testing.assert_close(one, clean, rtol=1e-2, atol=1e-3)


# -------------------------------------------------------------------------------------------------------------- the classifier


@properties
@given(small, small, small, st.just([]) | st.lists(small, min_size=2, max_size=2), st.booleans(), seeds)
def test_the_gradient_of_a_linear_layer_is_autograds(
    batch: int, channels: int, classes: int, place: list[int], sigmoid: bool, seed: int
) -> None:
    classifier = TeacherClassifier(randn(seed, classes, channels), randn(seed + 1, classes), sigmoid)
    feature = randn(seed + 2, batch, channels, *place, dtype=torch.float64).requires_grad_()
    target = randn(seed + 3, batch, classes, dtype=torch.float64).softmax(dim=1)
    weight = weights_of(seed, batch, 1).double()
    (expected,) = torch.autograd.grad(classifier.log_prob(feature, target, weight).sum(), feature)
    torch.testing.assert_close(classifier.gradient(feature.detach(), target, weight), expected)


@properties
@given(
    small,
    small,
    small,
    st.tuples(st.integers(3, 6), st.integers(3, 6)),
    st.sampled_from([(1, 1, 0, 1), (3, 1, 1, 1), (3, 2, 1, 1), (3, 1, 2, 2), (1, 2, 0, 1)]),
    st.integers(1, 3),
    st.booleans(),
    seeds,
)
def test_the_gradient_of_a_convolution_is_autograds(
    batch: int,
    channels: int,
    classes: int,
    size: tuple[int, int],
    layer: tuple[int, int, int, int],
    anchors: int,
    sigmoid: bool,
    seed: int,
) -> None:
    kernel, stride, padding, dilation = layer
    classifier = TeacherClassifier(
        randn(seed, anchors * classes, channels, kernel, kernel), None, sigmoid, stride, padding, dilation, anchors
    )
    feature = randn(seed + 1, batch, channels, *size, dtype=torch.float64).requires_grad_()
    logits = classifier(feature)
    assume(logits.numel() > 0)
    assert logits.shape[:2] == (batch, classes) and (anchors == 1 or logits.shape[4] == anchors)
    target = randn(seed + 2, *logits.shape, dtype=torch.float64).softmax(dim=1)
    weight = weights_of(seed, batch, 1, *logits.shape[2:]).double()
    (expected,) = torch.autograd.grad(classifier.log_prob(feature, target, weight).sum(), feature)
    found = classifier.gradient(feature.detach(), target, weight)
    torch.testing.assert_close(found, expected)
    # Targets may come with their locations in one dimension.
    torch.testing.assert_close(classifier.gradient(feature.detach(), target.flatten(2), weight.flatten(2)), expected)


@properties
@given(small, small, st.integers(1, 4), small, small, seeds)
def test_anchors_are_folded_and_unfolded(batch: int, classes: int, anchors: int, height: int, width: int, seed: int) -> None:
    logits = randn(seed, batch, anchors * classes, height, width)
    folded = fold_priors(logits, anchors)
    assert torch.equal(unfold_priors(folded, anchors), logits)
    # The order of mmdet's losses: rows, columns, anchors.
    flat = logits.permute(0, 2, 3, 1).reshape(batch, -1, classes)
    assert torch.equal(folded.flatten(2).transpose(1, 2), flat)
