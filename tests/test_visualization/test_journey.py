"""The stages of denoising: what a training step does, and who belongs to which class."""

import copy

import pytest
import torch
from torch import Tensor

from dskd_mm.distillers import DSKDDistiller
from dskd_mm.features import Pyramid
from dskd_mm.guidance import TeacherClassifier
from dskd_mm.structures import Target
from dskd_mm.testing import classifier_config, random_batch, random_teacher
from dskd_mm.visualization import FeatureJourney, follow_feature, plot_plane
from dskd_mm.visualization.maps import class_maps, direction_colours
from dskd_mm.visualization.plane import plane_directions
from support import build_distiller

BATCH = 24


def build(tmp_path, kind: str = 'gap', **switches) -> DSKDDistiller:
    config = dict(student=classifier_config(kind), teacher=random_teacher(str(tmp_path), kind=kind), noise_seed=7, **switches)
    return build_distiller(dict(type='dskd_mm.DSKDDistiller', **config))


def handmade(
    stages: Tensor, probability: Tensor, weight: Tensor, classifier: Tensor, sizes: list[tuple[int, int]], **options
) -> FeatureJourney:
    """A journey of given features (S, B, C, N)."""
    pyramid, taught = Pyramid(sizes), TeacherClassifier(classifier, sigmoid=True, **options)
    return FeatureJourney(
        names=[str(index) for index in range(len(stages))],
        stages=stages,
        pyramid=pyramid,
        logits=torch.stack([pyramid.map([taught], stage) for stage in stages]),
        target=Target(probability),
        classifiers=[taught],
    )


@pytest.mark.parametrize(
    'switches',
    [
        dict(),
        dict(prior='teacher', target='label', sampler=dict(steps=2, guidance_point='clean')),
        dict(autoencoder=dict(latent_channels=8)),
        dict(sampler=dict(noise='adapter'), detach=False),
        dict(normalize=False),
    ],
)
def test_the_last_step_is_what_a_training_step_hashes(tmp_path, switches):
    distiller = build(tmp_path, gate=False, **switches)
    images, samples = random_batch(BATCH)
    journey = follow_feature(copy.deepcopy(distiller), images, samples)

    hashed = []
    distiller.lsh.register_forward_pre_hook(lambda module, args: hashed.append(args))
    distiller.loss(images, samples)
    (feature, target, _), *_ = hashed
    vectors = journey.vectors()[..., 0]
    torch.testing.assert_close(vectors[0], feature, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(vectors[-2], target, rtol=1e-4, atol=1e-4)
    assert len(journey.names) == len(journey.stages) and journey.names[0] == "student's" and journey.names[-1] == "teacher's"
    assert journey.labels()[:, 0].tolist() == [int(sample.gt_label) for sample in samples]


def test_in_eval_mode_an_image_is_alone(tmp_path):
    """No statistics of the batch: an image's feature is the same beside others."""
    distiller = build(tmp_path).eval()
    images, samples = random_batch(BATCH)
    together = follow_feature(copy.deepcopy(distiller), images, samples).stages[0]
    alone = follow_feature(copy.deepcopy(distiller), images[:1], samples[:1]).stages[0]
    torch.testing.assert_close(together[:1], alone, rtol=1e-4, atol=1e-4)


def test_the_teacher_is_seen_where_training_does_without(tmp_path):
    distiller = build(tmp_path, preset='teacher_free').eval()
    images, samples = random_batch(4)
    journey = follow_feature(distiller, images, samples)
    teacher = distiller.teacher
    logits = teacher.classifiers[0](journey.stages[-1].unflatten(2, journey.pyramid.sizes[0]))
    torch.testing.assert_close(journey.logits[-1], logits)
    own = teacher.require_model()(teacher.adapt(images), mode='predict', data_samples=copy.deepcopy(samples))
    torch.testing.assert_close(journey.probabilities[-1, :, :, 0], torch.stack([sample.pred_score for sample in own]))


def test_who_does_not_denoise_is_refused(tmp_path):
    with pytest.raises(ValueError, match='turn both lsh and virtual off'):
        follow_feature(build(tmp_path, loss_weights=dict(lsh=0, virtual=0)), *random_batch(4))


def test_classes_of_locations_and_their_means_by_hand():
    # Two levels of 2 and 1 locations, 2 priors each, 2 classes; the only annotations: class 1 at locations 0 and 2.
    probability = torch.zeros(1, 2, 6)
    probability[0, 1, 1] = probability[0, 1, 4] = 1
    stages = torch.arange(6.0).reshape(2, 1, 1, 3)
    kernel = torch.tensor([1.0, 2.0, -1.0, 0.5]).reshape(4, 1, 1, 1)
    journey = handmade(stages, probability, probability, kernel, [(1, 2), (1, 1)], num_priors=2)
    assert journey.is_dense and journey.labels().tolist() == [[1, -1, 1]]
    ((label, means),) = journey.class_means().items()
    assert label == 1 and means.tolist() == [[1.0], [4.0]], 'of locations 0 and 2'
    # Priors (-x, x) for class 0 and (2x, x / 2) for class 1: the channels are (A, K).
    expected = torch.stack([torch.sigmoid(stages[:, 0, 0] * factor) for factor in (1.0, 2.0)], dim=1)
    torch.testing.assert_close(journey.probabilities[:, 0], expected)
    torch.testing.assert_close(journey.class_opinions()[1], expected[:, :, [0, 2]].mean(dim=2))
    colours = class_maps(journey, 0, [(255, 0, 0), (0, 0, 255)])
    torch.testing.assert_close(colours[:, 0, :, 2], expected[:, 1, :2])
    directions = journey.class_directions()
    torch.testing.assert_close(directions, torch.tensor([[-0.625], [0.625]]))


def test_directions_as_colours_tell_places_apart_and_ignore_offsets():
    maps = torch.randn(1, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    shifted = torch.cat([maps, maps * 3 + 7])
    (colours,) = direction_colours([shifted])
    assert colours.shape == (2, 3, 3, 3) and float(colours.min()) >= 0 and float(colours.max()) <= 1
    torch.testing.assert_close(colours[0], colours[1], rtol=1e-3, atol=1e-3)
    assert colours[0].flatten(0, 1).std(dim=0).min() > 0.1


def test_the_plane_is_within_what_the_classifier_looks_at():
    points = torch.randn(20, 5, generator=torch.Generator().manual_seed(0)) * torch.tensor([100.0, 1.0, 2.0, 1.0, 1.0])
    classes = torch.eye(5)[1:4] - torch.eye(5)[1:4].mean(dim=0)
    directions = plane_directions(points - points.mean(dim=0), classes)
    assert directions.shape == (2, 5)
    torch.testing.assert_close(directions[:, [0, 4]], torch.zeros(2, 2), rtol=0, atol=1e-5)
    assert plane_directions(points - points.mean(dim=0), None)[0, 0].abs() > 0.9, 'without one, where points differ most'
    assert plane_directions(torch.zeros(1, 5), None) is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU')
def test_a_journey_on_a_gpu_is_drawn_on_the_cpu(tmp_path):
    distiller = build(tmp_path).cuda()
    images, samples = random_batch(4)
    journey = follow_feature(distiller, images.cuda(), [sample.cuda() for sample in samples])
    assert not any(value.is_cuda for value in (journey.stages, journey.logits, journey.labels(), journey.class_directions()))
    assert distiller.classifiers[0].weight.is_cuda
    plot_plane([journey], ['a'] * 4, [(0, 0, 0)] * 4)
