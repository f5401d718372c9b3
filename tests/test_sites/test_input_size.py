"""A teacher that sees the student's images in another size."""

from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch

from dskd_mm.features import match_levels
from dskd_mm.teacher import FrozenTeacher
from dskd_mm.testing import assert_trains, classifier_config, random_batch, random_teacher
from support import (
    DENSE_SIZE,
    build_distiller,
    dense_distiller_config,
    detection_batch,
    random_boxes,
    segmentation_batch,
    watch,
)

needs_mmdet = pytest.mark.skipif(not find_spec('mmdet'), reason='mmdet is not installed')
needs_mmseg = pytest.mark.skipif(not find_spec('mmseg'), reason='mmseg is not installed')
OBJECTS = [random_boxes(3), random_boxes(2, seed=1)]
PREDICTIONS = {'diff', 'lsh', 'anchor', 'logit'}


def linear(line: np.ndarray, length: int) -> np.ndarray:
    """Resize a line of numbers with a triangle as wide as a pixel of the coarser line, pixel centres at halves."""
    factor = len(line) / length
    support, resized = max(factor, 1.0), []
    for i in range(length):
        weights = np.maximum(0, 1 - np.abs(np.arange(len(line)) + 0.5 - (i + 0.5) * factor) / support)
        resized.append((weights * line).sum() / weights.sum())
    return np.array(resized)


@pytest.mark.parametrize('size', [(32, 24), (8, 11), 2.0, 0.5, 1.3])
def test_images_are_resized_as_pixels_are(tmp_path, size: Any) -> None:
    teacher = random_teacher(str(tmp_path))
    distiller = build_distiller(
        dict(type='dskd_mm.DSKDDistiller', student=classifier_config(), teacher={**teacher, 'input_size': size})
    )
    distiller.load_teacher()
    image = np.random.default_rng(0).normal(size=(16, 20))
    found = distiller.teacher.adapt(torch.from_numpy(image).float().expand(2, 3, 16, 20))
    height, width = size if isinstance(size, tuple) else (round(16 * size), round(20 * size))
    expected = np.apply_along_axis(linear, 1, np.apply_along_axis(linear, 0, image, height), width)
    assert found.shape == (2, 3, height, width)
    np.testing.assert_allclose(found[1, 2].numpy(), expected, atol=1e-5)


@pytest.mark.parametrize('size', [224, (224,), (224, 0), (8, 8, 8), 'large', 0.0, -1.0, float('nan'), True])
def test_a_size_that_is_none_is_refused(tmp_path, size: Any) -> None:
    with pytest.raises(ValueError, match=r'\(224, 224\), or a factor with a point, such as 2\.0'):
        FrozenTeacher(**random_teacher(str(tmp_path)), input_size=size)


@pytest.mark.parametrize('kind', ['gap', 'vit'])
def test_a_classifier_of_larger_images(tmp_path, kind: str) -> None:
    teacher = random_teacher(str(tmp_path), kind=kind, image_size=32)
    config = dict(type='dskd_mm.DSKDDistiller', student=classifier_config('gap'), prior='teacher')
    distiller = build_distiller({**config, 'teacher': {**teacher, 'input_size': (32, 32)}})
    images, samples = random_batch()
    calls = watch(distiller, 'distill')
    distiller(images, samples, mode='loss')
    seen = torch.nn.functional.interpolate(images, (32, 32), mode='bilinear')
    with torch.no_grad():
        expected = distiller.teacher.model(seen, mode='tensor')
    student, said = calls[-1].args[:2]
    torch.testing.assert_close(said.logits, expected)
    if kind == 'gap':  # its map is twice as high and wide
        assert said.features[0].shape[2:] == student.features[0].shape[2:]
    distiller = build_distiller({**config, 'teacher': {**teacher, 'input_size': 2.0}})
    assert_trains(distiller, dict(inputs=images, data_samples=samples), PREDICTIONS)


@pytest.mark.parametrize('size', [(16, 16), 1.0])
def test_the_same_size_changes_nothing(tmp_path, size: Any) -> None:
    teacher = random_teacher(str(tmp_path))
    config = dict(type='dskd_mm.DSKDDistiller', student=classifier_config(), noise_seed=0)
    images, samples = random_batch()
    plain, sized = (
        build_distiller({**config, 'teacher': {**teacher, **more}})(images, samples, mode='loss')
        for more in ({}, dict(input_size=size))
    )
    assert plain.keys() == sized.keys()
    assert all(torch.equal(plain[key], sized[key]) for key in plain)


@needs_mmdet
@pytest.mark.parametrize('kind', ['retinanet', 'rtmdet', 'gfl'])
def test_a_dense_detector_finds_an_object_of_the_student_a_level_later(tmp_path, kind: str) -> None:
    config = dense_distiller_config(kind, str(tmp_path))
    config.teacher.input_size = 2.0
    distiller = build_distiller(config)
    batch = detection_batch(distiller, OBJECTS)
    calls = watch(distiller, 'distill')
    losses = distiller(**batch, mode='loss')
    assert 'loss_dskd_box' not in losses
    student, said = calls[-1].args[:2]
    model = distiller.teacher.model
    with torch.no_grad():
        own = model.bbox_head(model.extract_feat(distiller.teacher.adapt(batch['inputs'])))[0]
    for i, level in enumerate(said.logit_levels[:-1]):
        assert level.shape[2:] == student.logit_levels[i].shape[2:]
        torch.testing.assert_close(level, own[i + 1])
    assert_trains(build_distiller(config), batch, PREDICTIONS)
    config.distill_losses = dict(box=dict(type='dskd_mm.BoxLoss'))
    with pytest.raises(ValueError, match=r'input_size'):
        build_distiller(config)


@needs_mmdet
def test_proposals_are_those_of_the_teachers_pixels(tmp_path) -> None:
    config = dense_distiller_config('faster_rcnn', str(tmp_path))
    config.teacher.input_size = (2 * DENSE_SIZE[0], 3 * DENSE_SIZE[1])
    distiller = build_distiller(config)
    batch = detection_batch(distiller, OBJECTS)
    distiller.load_teacher()
    asked = watch(distiller.teacher.model.roi_head, '_bbox_forward')
    own = watch(distiller.student.roi_head, '_bbox_forward')
    losses = distiller(**batch, mode='loss')
    assert torch.isfinite(losses['loss_dskd_box'])
    (rois,), (theirs,) = [call.args[-1] for call in own], [call.args[-1] for call in asked]
    assert torch.equal(theirs[:, 0], rois[:, 0])
    torch.testing.assert_close(theirs[:, [1, 3]], 3 * rois[:, [1, 3]])
    torch.testing.assert_close(theirs[:, [2, 4]], 2 * rois[:, [2, 4]])
    assert_trains(build_distiller(config), batch, {*PREDICTIONS, 'box'})


@needs_mmseg
def test_a_segmenter_of_larger_images(tmp_path) -> None:
    config = dense_distiller_config('fcn', str(tmp_path))
    config.teacher.input_size = 1.5
    distiller = build_distiller(config)
    labels = torch.zeros(2, *DENSE_SIZE, dtype=torch.long)
    labels[:, 20:45] = 1
    batch = segmentation_batch(distiller, labels)
    calls = watch(distiller, 'distill')
    distiller(**batch, mode='loss')
    student, said = calls[-1].args[:2]
    assert said.logit_levels[0].shape == student.logit_levels[0].shape
    with torch.no_grad():
        own = distiller.teacher.model(distiller.teacher.adapt(batch['inputs']), mode='tensor')
    torch.testing.assert_close(said.logit_levels, match_levels([own], student.logit_levels))
    assert_trains(build_distiller(config), batch, {*PREDICTIONS, 'channel'})


@needs_mmdet
def test_a_whole_head_guides_in_the_students_pixels(tmp_path) -> None:
    config = dense_distiller_config('retinanet', str(tmp_path), site=dict(type='dskd_mm.NeckSite'), prior='teacher')
    config.teacher.input_size = 2.0
    distiller = build_distiller(config)
    assert_trains(distiller, detection_batch(distiller, OBJECTS), {'diff', 'lsh', 'anchor'})


def test_levels_correspond_by_size_among_those_of_one_width() -> None:
    sizes = [(16, 24), (8, 12), (4, 6), (2, 3), (1, 1)]
    student = [torch.zeros(1, 2, *size) for size in sizes]
    larger = [torch.full((1, 3, 2 * height, 2 * width), float(i)) for i, (height, width) in enumerate(sizes)]
    assert [int(level.amax()) for level in match_levels(larger, student)] == [1, 2, 3, 4, 4]
    assert [int(level.amax()) for level in match_levels(larger, student, by_size=False)] == [0, 1, 2, 3, 4]
    equal = [torch.full((1, 3, 1, 1), float(i)) for i in range(5)]
    assert [int(level.amax()) for level in match_levels(equal, equal)] == [0, 1, 2, 3, 4]
    widths = [torch.full((1, 3 + i, 2 * height, 2 * width), float(i)) for i, (height, width) in enumerate(sizes)]
    assert [int(level.amax()) for level in match_levels(widths, student)] == [0, 1, 2, 3, 4]
