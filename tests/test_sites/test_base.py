"""What all sites share: observations of a pass, which locations are hashed, and counts over all processes."""

from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from dskd_mm.distributed import mean_over_ranks
from dskd_mm.functional import target_cross_entropy
from dskd_mm.sites import ClassificationSite, DenseDetectionSite, NeckSite, SegmentationSite, Site, TwoStageDetectionSite
from dskd_mm.sites.annotations import location_classes, sample_stratified
from dskd_mm.structures import TapRecord, TapSpec, Target

examples = settings(derandomize=True, deadline=None, max_examples=60)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ('site', 'task', 'norm'),
    [
        (ClassificationSite, 'classification', 'BN'),
        (SegmentationSite, 'segmentation', 'BN'),
        (TwoStageDetectionSite, 'two_stage_detection', 'BN'),
        (DenseDetectionSite, 'dense_detection', 'GN'),
        (NeckSite, 'neck', 'GN'),
    ],
)
def test_what_a_site_tells_methods(site, task, norm):
    assert (site.task, site.norm) == (task, norm)


# ------------------------------------------------------------------------------------------- stratified choice


@examples
@given(
    batch=st.integers(1, 3),
    length=st.integers(1, 30),
    num_classes=st.integers(1, 5),
    share=st.sampled_from([0.0, 0.3, 0.9, 1.0]),
    data=st.data(),
    seed=st.integers(0, 2**16),
)
def test_ignored_locations_are_chosen_last_and_weigh_nothing(batch, length, num_classes, share, data, seed):
    count = data.draw(st.integers(1, length))
    random = generator(seed)
    classes = torch.randint(num_classes, (batch, length), generator=random)
    classes[torch.rand(batch, length, generator=random) < share] = -1
    index, weight = sample_stratified(classes, num_classes, count, random)
    assert index.shape == weight.shape == (batch, count)
    for row, chosen, w in zip(classes, index, weight, strict=True):
        assert len(set(chosen.tolist())) == count, 'a location is chosen once'
        assert torch.equal(w, (row[chosen] >= 0).float())
        assert int(w.sum()) == min(count, int((row >= 0).sum()))


def test_a_large_map_of_mostly_ignored_locations_yields_all_others():
    """Where float32 could mix up very unlikely locations with impossible ones."""
    classes = torch.full((2, 200_000), -1)
    kept = torch.randperm(200_000, generator=generator())[:500]
    classes[:, kept] = torch.arange(500) % 3
    index, weight = sample_stratified(classes, 3, 600, generator())
    assert weight.sum(dim=1).tolist() == [500, 500]
    assert set(index[1, :500].tolist()) == set(kept.tolist())


def test_every_class_that_occurs_is_met_as_often():
    """One location of a rare class among a thousand is chosen as often as all of the common one together."""
    classes = torch.zeros(4000, 1000, dtype=torch.long)
    classes[:, :10] = 1
    classes[:, 10] = 3
    index, weight = sample_stratified(classes, 5, 1, generator())
    assert weight.min() == 1
    frequency = Counter(classes.gather(1, index).flatten().tolist())
    assert set(frequency) == {0, 1, 3}
    for count in frequency.values():
        assert count / 4000 == pytest.approx(1 / 3, abs=0.03)  # four standard errors
    # Within a class all locations alike.
    places = Counter(index[classes.gather(1, index) == 1].tolist())
    assert len(places) == 10 and max(places.values()) < 2 * min(places.values())


def test_half_of_many_choices_is_each_of_two_large_classes():
    classes = torch.zeros(20, 2000, dtype=torch.long)
    classes[:, 1600:] = 2
    index, _ = sample_stratified(classes, 3, 200, generator())
    share = (classes.gather(1, index) == 2).float().mean()
    # Without replacement the smaller class is used up a little: below a half, far above its share of a fifth.
    assert 0.42 < share < 0.52


def test_nothing_but_ignored_locations_weighs_nothing():
    classes = torch.full((2, 7), -1)
    classes[1, 3] = 0
    index, weight = sample_stratified(classes, 2, 4, generator())
    assert weight[0].sum() == 0
    assert weight[1].sum() == 1
    assert index.min() >= 0 and index.max() < 7


def test_the_choice_follows_from_the_generator_alone():
    classes = torch.randint(4, (3, 50), generator=generator())
    torch.manual_seed(1)
    first = sample_stratified(classes, 4, 10, generator(5))
    torch.manual_seed(2)
    second = sample_stratified(classes, 4, 10, generator(5))
    other = sample_stratified(classes, 4, 10, generator(6))
    assert torch.equal(first[0], second[0])
    assert not torch.equal(first[0], other[0])


# --------------------------------------------------------------------------------------------- location classes


def by_hand(probability: Tensor, weight: Tensor | None, length: int) -> list[list[int]]:
    """In loops over images and locations: the class of the most certain prediction that counts."""
    batch, num_classes, predictions = probability.shape
    anchors = predictions // length
    result = []
    for b in range(batch):
        row = []
        for location in range(length):
            here = range(location * anchors, (location + 1) * anchors)
            counted = [m for m in here if weight is None or weight[b, 0, m] > 0]
            best = max(((float(probability[b, k, m]), -k) for m in counted for k in range(num_classes)), default=None)
            row.append(-1 if best is None else num_classes if best[0] == 0 else -best[1])
        result.append(row)
    return result


@examples
@given(
    batch=st.integers(1, 2),
    num_classes=st.integers(1, 4),
    length=st.integers(1, 6),
    anchors=st.integers(1, 3),
    kind=st.sampled_from(['labels', 'scores']),
    weighted=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_a_location_has_the_class_of_its_most_certain_prediction(batch, num_classes, length, anchors, kind, weighted, seed):
    random = generator(seed)
    labels = torch.randint(num_classes + 1, (batch, length * anchors), generator=random)  # the last is background
    probability = (labels[:, None] == torch.arange(num_classes)[:, None]).float()
    if kind == 'scores':
        probability = probability * torch.rand(batch, 1, length * anchors, generator=random)
    weight = None
    if weighted:
        weight = torch.rand(batch, 1, length * anchors, generator=random)
        weight = weight * (torch.rand(weight.shape, generator=random) > 0.4)
    classes = location_classes(Target(probability, weight), length)
    assert classes.dtype == torch.long
    assert classes.tolist() == by_hand(probability, weight, length)


def test_classes_of_proposals_and_images():
    probability = torch.tensor([[0, 0, 1.0], [1, 0, 0], [0, 0, 0], [0, 1, 0]])
    weight = torch.tensor([[1.0], [1], [1], [0]])
    assert location_classes(Target(probability, weight), 1).tolist() == [[2], [0], [3], [-1]]
    assert location_classes(Target(probability), 1).tolist() == [[2], [0], [3], [1]]
    for weight in (None, torch.ones(0, 1)):  # a batch of no proposals
        assert location_classes(Target(torch.zeros(0, 3), weight), 1).shape == (0, 1)


# ------------------------------------------------------------------------------------------------------ vectors


class ToySite(Site):
    def __init__(self, vectors_per_image: int | None) -> None:
        self.vectors_per_image = vectors_per_image

    student_spec = teacher_spec = target = None


def test_all_locations_are_hashed_unless_there_is_a_limit():
    first, second = torch.randn(2, 2, 3, 6)
    for limit in (None, 6, 100):
        (mine, other), weight = ToySite(limit).hash_vectors([first, second], None, generator())
        assert weight is None
        assert mine.shape == (12, 3)
        torch.testing.assert_close(mine[6 + 4], first[1, :, 4])
        torch.testing.assert_close(other[6 + 4], second[1, :, 4])


def test_what_is_ignored_weighs_nothing_when_all_is_hashed():
    weight = torch.tensor([[[1.0, 0, 0.5]], [[0, 1, 1]]])
    target = Target(torch.rand(2, 4, 3), weight)
    _, counts = ToySite(None).hash_vectors([torch.randn(2, 5, 3)], target, generator())
    assert counts.tolist() == [1, 0, 1, 0, 1, 1]


@pytest.mark.parametrize('annotated', [True, False])
def test_chosen_vectors_are_at_the_same_locations_of_all_tensors(annotated):
    count = 8
    first = torch.arange(2 * 30).reshape(2, 1, 30).float()
    second = torch.cat([first + 1000, -first], dim=1)
    weight = (torch.arange(30) % 2).expand(2, 1, 30).float()
    target = Target(torch.rand(2, 3, 30), weight) if annotated else None
    (mine, other), counts = ToySite(count).hash_vectors([first, second], target, generator())
    assert mine.shape == (2 * count, 1)
    assert other.shape == (2 * count, 2)
    torch.testing.assert_close(other, torch.cat([mine + 1000, -mine], dim=1))
    assert counts.tolist() == [1] * 2 * count
    for image, values in enumerate(mine.reshape(2, count).long().tolist()):
        assert len(set(values)) == count
        assert all(value // 30 == image for value in values)
        if annotated:
            assert all(value % 2 == 1 for value in values), 'ignored locations are left out while there are others'
    again, _ = ToySite(count).hash_vectors([first, second], target, generator())
    torch.testing.assert_close(again[0], mine)


def test_rare_classes_are_among_the_chosen_vectors():
    """Two anchors a location: one object of class 2 at location 17 of 400, all else background."""
    probability = torch.zeros(1, 3, 800)
    probability[0, 2, 2 * 17 + 1] = 0.4
    place = torch.arange(400.0)[None, None]
    met = [
        17 in ToySite(4).hash_vectors([place], Target(probability), generator(seed))[0][0].flatten().tolist()
        for seed in range(50)
    ]
    assert sum(met) > 40


def test_gradients_reach_the_chosen_locations_alone():
    feature = torch.randn(1, 3, 10, requires_grad=True)
    (vectors,), _ = ToySite(4).hash_vectors([feature], None, generator())
    vectors.sum().backward()
    assert (feature.grad.abs().sum(dim=1) > 0).sum() == 4


# ------------------------------------------------------------------------------------------------- observations


class Levels(nn.Module):
    """A head that is shared by all levels, or one a level, behind a neck that returns all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.neck = Neck()
        self.shared = nn.Conv2d(3, 4, 1)
        self.own = nn.ModuleList([nn.Conv2d(3, 4, 1) for _ in range(3)])
        self.loss = nn.MSELoss()

    def forward(self, x: Tensor) -> None:
        for level, own in zip(self.neck(x), self.own, strict=True):
            self.loss(self.shared(level), own(level))


class Neck(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return x, x[:, :, ::2, ::2], x[:, :, ::4, ::4]


def make_spec(features: tuple[str, ...], classifiers: tuple[str, ...] = ('shared',), **kwargs) -> TapSpec:
    settings = dict(io='input', channels=3, strides=((1, 1), (2, 2), (4, 4)), calls=dict(loss='loss'))
    return TapSpec(part='', classifiers=classifiers, sigmoid=False, num_classes=4, features=features, **{**settings, **kwargs})


OWN = ('own.0', 'own.1', 'own.2')


@pytest.mark.parametrize('classifiers', [('shared',), OWN])
@pytest.mark.parametrize(
    ('features', 'options'),
    [(('shared',), dict()), (OWN, dict()), (('neck',), dict(io='output', index='all', strides=()))],
    ids=['shared', 'one a level', 'neck'],
)
def test_all_levels_are_observed(features, options, classifiers):
    torch.manual_seed(0)
    model, images = Levels(), torch.randn(2, 3, 8, 8)
    spec = make_spec(features, classifiers, **options)
    assert spec.is_pyramid
    levels = model.neck(images)
    layers = [model.shared] * 3 if classifiers == ('shared',) else model.own
    expected = [layer(level) for layer, level in zip(layers, levels, strict=True)]
    with TapRecord(model, spec, 'student') as seen:
        model(images)
        torch.testing.assert_close(seen.features, list(levels))
        torch.testing.assert_close(seen.logits, expected)
        calls = seen.calls('loss')
        assert len(calls) == 3
        torch.testing.assert_close(calls[1][0][0], model.shared(levels[1]))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    with pytest.raises(RuntimeError, match='never fired'):
        _ = seen.features


def test_a_layer_that_fires_less_often_than_there_are_levels_is_noticed():
    model = Levels()
    with TapRecord(model, make_spec(('own.0',), ('own.0', 'own.1')), 'student') as seen:
        model(torch.randn(2, 3, 8, 8))
        with pytest.raises(ValueError, match=r"input of 'own.0' in the student is expected to fire for each of the 3 levels"):
            _ = seen.features
        with pytest.raises(ValueError, match=r'got 2 tensors\. Name the layer that all levels share, or one for each level'):
            _ = seen.logits


def test_only_the_last_call_counts_where_there_are_no_levels():
    model, images = Levels(), torch.randn(2, 3, 8, 8)
    spec = make_spec(('shared',), strides=())
    assert not spec.is_pyramid
    with TapRecord(model, spec, 'student') as seen:
        model(images)
        assert [level.shape for level in seen.features] == [(2, 3, 2, 2)]
        assert [level.shape for level in seen.logits] == [(2, 4, 2, 2)]


@pytest.mark.parametrize(('shape', 'is_fine'), [((2, 3), True), ((2, 4), False), ((2, 5, 3), False), ((2, 4, 3, 3), False)])
def test_features_are_maps_of_the_expected_channels(shape, is_fine):
    """A vector is a map of a single location."""
    model = nn.Sequential(nn.Identity())
    spec = make_spec(('0',), ('0',), strides=(), calls={})
    with TapRecord(model, spec, 'teacher') as seen:
        value = model(torch.randn(shape))
        if is_fine:
            assert torch.equal(seen.features[0], value[:, :, None, None])
        else:
            with pytest.raises(ValueError, match=r"input of '0' in the teacher is expected to be of shape \(B, 3, H, W\)"):
                _ = seen.features


def test_an_error_in_the_pass_leaves_no_hook():
    model = Levels()
    with pytest.raises(RuntimeError), TapRecord(model, make_spec(('shared',)), 'student'):
        model(torch.randn(2, 5, 8, 8))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


# ---------------------------------------------------------------------------------------------- several processes


def test_a_single_process_counts_for_itself():
    count = torch.tensor(3.0)
    mean = mean_over_ranks(count)
    assert mean == 3
    mean += 1
    assert count == 3


def test_losses_divided_by_the_mean_count_have_the_gradient_of_the_joined_batch(monkeypatch):
    """Distributed training averages gradients over ranks; here two, of which one has no object at all."""
    torch.manual_seed(0)
    counts = [torch.tensor(3.0), torch.tensor(0.0)]

    def all_reduce(tensor: Tensor, op: str) -> None:
        assert op == 'mean'
        tensor.copy_(sum(counts) / 2)

    monkeypatch.setattr('dskd_mm.distributed.all_reduce', all_reduce)
    logits, q = torch.randn(4, 3, 5, requires_grad=True), torch.rand(4, 3, 5)
    losses = [
        target_cross_entropy(logits[half], Target(q[half], avg_factor=mean_over_ranks(count)), sigmoid=True)
        for half, count in zip((slice(2), slice(2, 4)), counts, strict=True)
    ]
    assert counts[0] == 3, 'the count given is left as it was'
    joined = target_cross_entropy(logits, Target(q, avg_factor=sum(counts)), sigmoid=True)
    (expected,) = torch.autograd.grad(joined, logits)
    (gradient,) = torch.autograd.grad(sum(losses) / 2, logits)
    torch.testing.assert_close(gradient, expected)
