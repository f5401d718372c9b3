"""What holds at every site of detectors and segmenters: they train, losses reach the student, empty images do no harm."""

from importlib.util import find_spec
from typing import Any

import pytest
import torch
from mmengine.config import ConfigDict

from dskd_mm.sites import DenseDetectionSite, TwoStageDetectionSite
from dskd_mm.testing import assert_distils, assert_nothing_is_unused, assert_trains, distillation_losses
from support import (
    DENSE_CLASSES,
    DENSE_SIZE,
    DETECTORS,
    SEGMENTORS,
    build_distiller,
    detection_batch,
    random_boxes,
    segmentation_batch,
    watch,
)

AT_THE_NECK = ['detr', 'retinanet@neck', 'faster_rcnn@neck']
SITES = {kind: 'dskd_mm.NeckSite' for kind in AT_THE_NECK if '@' in kind}
KINDS = [kind for kind in [*DETECTORS, *SITES] if find_spec('mmdet')] + [kind for kind in SEGMENTORS if find_spec('mmseg')]
IGNORED = 255
OBJECTS = [random_boxes(3), random_boxes(2, seed=1)] if find_spec('mmdet') else []


def label_maps(kind: str) -> torch.Tensor:
    """Bands of each class in two images, with ignored pixels between."""
    labels = torch.zeros(2, *DENSE_SIZE, dtype=torch.long)
    labels[0, 20:45] = 1
    labels[1, :, 50:] = 1 if kind == 'binary' else DENSE_CLASSES - 1
    labels[:, 30:38, 10:50] = IGNORED
    return labels


def batch_for(distiller: Any, kind: str, images: int = 2) -> dict[str, Any]:
    """Two images; objects or labels are in so many of them."""
    if kind in SEGMENTORS:
        labels = label_maps(kind)
        labels[images:] = IGNORED
        return segmentation_batch(distiller, labels)
    return detection_batch(distiller, [*OBJECTS[:images], *([[]] * (2 - images))], masks=kind == 'mask_rcnn')


@pytest.mark.parametrize('kind', KINDS)
def test_two_iterations_train(configs: dict[str, ConfigDict], kind: str) -> None:
    distiller = build_distiller(configs[kind])
    expected = {'anchor', 'diff', 'lsh'} if kind in AT_THE_NECK else {'anchor', 'diff', 'lsh', 'logit'}
    expected |= {'box'} if isinstance(distiller.site, DenseDetectionSite | TwoStageDetectionSite) else set()
    expected |= {'channel'} if kind in SEGMENTORS else set()
    assert_trains(distiller, batch_for(distiller, kind), expected)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('images', [2, 1])
def test_sampling_may_begin_from_the_teachers_feature(configs: dict[str, ConfigDict], kind: str, images: int) -> None:
    """Which is nearer to it then, at any site; an image without an object does no harm."""
    cosines = []
    for mix in (0.0, 0.8):
        distiller = build_distiller({**configs[kind], 'mix': mix})
        losses = distiller.train()(**batch_for(distiller, kind, images), mode='loss')
        assert all(torch.isfinite(v).all() for name, v in losses.items() if isinstance(v, torch.Tensor))
        cosines.append(losses.get('dskd_cosine_denoised'))
    assert cosines[0] is None or cosines[1] > cosines[0]


@pytest.mark.parametrize('kind', KINDS)
def test_gradients_reach_the_student_and_all_of_its_parameters(configs: dict[str, ConfigDict], kind: str) -> None:
    distiller = build_distiller(configs[kind])
    batch = batch_for(distiller, kind)
    assert_distils(distiller, batch)
    assert_nothing_is_unused(distiller, batch)


@pytest.mark.parametrize('images', [1, 0])
@pytest.mark.parametrize('kind', KINDS)
def test_images_without_annotations(configs: dict[str, ConfigDict], kind: str, images: int) -> None:
    distiller = build_distiller(configs[kind])
    batch = batch_for(distiller, kind, images)
    if kind == 'binary' and not images:
        with pytest.raises(RuntimeError, match=r'max\(\)'):  # mmseg's own loss looks for the highest label
            distiller.student(**batch, mode='loss')
        for head in (distiller.student.decode_head, distiller.student.auxiliary_head):
            head.loss_by_feat = lambda logits, samples: dict(loss_ce=logits.sum() * 0)
    _, log = distiller.parse_losses(distiller(**batch, mode='loss'))
    # The hosts' own figures may be undefined where nothing is labelled.
    ours = {key: value for key, value in log.items() if 'dskd' in key or kind in DETECTORS}
    assert all(bool(value.isfinite()) for value in ours.values()), ours
    if kind in SEGMENTORS and not images:
        # Nothing is annotated, so nothing is asked but to denoise, and of the maps as a whole what the teacher makes of them.
        assert {key for key, value in distillation_losses(log).items() if value} == {'loss_dskd_diff', 'loss_dskd_channel'}
    assert_nothing_is_unused(distiller, batch)


@pytest.mark.parametrize(('kind', 'levels'), [('detr', 1), ('retinanet@neck', 5), ('faster_rcnn@neck', 5)])
def test_the_neck_has_levels(configs: dict[str, ConfigDict], kind: str, levels: int) -> None:
    if kind not in KINDS:
        pytest.skip('mmdet is not installed')
    distiller = build_distiller(configs[kind])
    calls = watch(distiller, 'distill')
    distiller(**batch_for(distiller, kind), mode='loss')
    assert len(calls[-1].args[0].features) == levels
