"""Heads that end in no linear classifier: refused by a way that works, and the same at both ends of it."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip('mmdet')
pytest.importorskip('mmseg')

import torch
from mmengine.registry import MODELS

from dskd_mm.distillers import DSKDDistiller
from dskd_mm.sites import NeckSite, build_site
from dskd_mm.testing import assert_distils, identity_step, make_identical, random_teacher, train
from dskd_mm.testing.toy import save_random_model
from support import (
    DENSE_SIZE,
    assert_refused,
    build_distiller,
    dense_distiller_config,
    detection_batch,
    random_boxes,
    segmentation_batch,
)

AT_THE_NECK = "Distil at the neck instead: site=dict(type='dskd_mm.NeckSite')."
NECK = dict(type='dskd_mm.NeckSite')
OBJECTS = [random_boxes(3), random_boxes(2, seed=1)]


def labelled(distiller: Any) -> dict[str, Any]:
    labels = torch.zeros(2, *DENSE_SIZE, dtype=torch.long)
    labels[:, 20:45, :40] = 1
    return segmentation_batch(distiller, labels)


def of_itself(kind: str, directory: Path, **options: Any) -> Any:
    """A distiller of a student that is built as its teacher is."""
    return build_distiller(dense_distiller_config(kind, str(directory), student=dict(width=6), **options))


def assert_the_same(distiller: Any, batch: dict[str, Any], names: set[str]) -> None:
    """An identical student has nothing to learn, and what it could learn is compared."""
    make_identical(distiller)
    found, outputs, losses = identity_step(distiller, batch)
    assert set(found) == names and max(found.values()) < 1e-4, found
    assert all(bool(torch.isfinite(value)) for name, value in distiller.parse_losses(losses)[1].items() if 'loss' in name)
    if 'head' in names:  # not because the head does not look
        other = outputs.head_loss([level.detach() + 1 for level in outputs.student.features])
        own = outputs.head_loss([level.detach() for level in outputs.student.features])
        assert abs(float(other - own)) > 1e-3 * abs(float(own))


PIXELS = {'point_rend': 'decode_head.0.conv_seg', 'knet': 'decode_head.kernel_generate_head.conv_seg'}


@pytest.mark.parametrize('kind', PIXELS)
def test_segmenters_that_refine_what_a_layer_says(tmp_path: Path, kind: str) -> None:
    distiller = of_itself(kind, tmp_path)
    assert distiller.student_spec.classifiers == distiller.teacher_spec.classifiers == (PIXELS[kind],)
    batch = labelled(distiller)
    assert_distils(distiller, batch)
    assert_the_same(distiller, batch, {'feature', 'logits'})


def test_logits_of_knet_are_those_it_predicts_with(tmp_path: Path) -> None:
    distiller = of_itself('knet', tmp_path)
    batch = labelled(distiller)
    make_identical(distiller)
    _, outputs, _ = identity_step(distiller, batch)
    model = distiller.teacher.model
    with torch.no_grad():
        said = model(batch['inputs'], mode='tensor')
        first = model.decode_head.kernel_generate_head(model.extract_feat(batch['inputs']))
    torch.testing.assert_close(outputs.student.logit_levels[0], said, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(said, first, atol=1e-3)


@pytest.mark.parametrize('kind', ['segmenter', 'mask2former'])
def test_segmenters_by_queries_name_the_neck_which_works(tmp_path: Path, kind: str) -> None:
    config = dense_distiller_config(kind, str(tmp_path), student=dict(width=6))
    assert_refused(config, lambda _: None, ["student's decode head", 'conv_seg', 'has none', AT_THE_NECK])
    distiller = build_distiller({**config, 'site': NECK, 'prior': 'teacher'})
    assert distiller.student_spec.part == 'backbone'
    batch = labelled(distiller)
    assert_distils(distiller, batch)
    assert_the_same(distiller, batch, {'feature', 'head'})


@pytest.mark.parametrize('kind', ['detr', 'retinanet', 'faster_rcnn', 'ssd', 'yolov3', 'vfnet', 'paa', 'freeanchor'])
def test_detectors_at_the_neck(tmp_path: Path, kind: str) -> None:
    distiller = of_itself(kind, tmp_path, site=NECK, prior='teacher')
    assert_the_same(distiller, detection_batch(distiller, OBJECTS), {'feature', 'head'})


def test_mask_formers_of_mmdet_are_distilled_at_the_neck() -> None:
    from mmdet.models.detectors import Mask2Former

    assert isinstance(build_site(None, Mask2Former.__new__(Mask2Former)), NeckSite)


@pytest.mark.parametrize(
    ('kind', 'site', 'part'),
    [('faster_rcnn', 'DenseDetectionSite', 'bbox_head'), ('retinanet', 'TwoStageDetectionSite', 'roi_head.bbox_head')],
)
def test_a_detector_without_the_head_names_the_neck_which_works(tmp_path: Path, kind: str, site: str, part: str) -> None:
    config = dense_distiller_config(kind, str(tmp_path), site=dict(type=f'dskd_mm.{site}'))
    assert_refused(config, lambda _: None, [f'has no module {part!r}', AT_THE_NECK])
    distiller = build_distiller({**config, 'site': NECK})
    train(distiller, detection_batch(distiller, OBJECTS), steps=1)


def test_samplers_that_ask_the_head_aside(tmp_path: Path) -> None:
    """OHEM calls extractor, head and loss under no_grad to find the hardest proposals."""
    config = dense_distiller_config('faster_rcnn', str(tmp_path), student=dict(width=6))
    for model in (config.student, config.teacher.config.model):
        model.train_cfg.rcnn.sampler.type = 'OHEMSampler'
    distiller = build_distiller(config)
    batch = detection_batch(distiller, OBJECTS)
    assert_distils(distiller, batch)
    assert_the_same(distiller, batch, {'feature', 'logits', 'boxes'})


def test_heads_of_several_tasks_name_the_neck_which_works(tmp_path: Path) -> None:
    pytest.importorskip('mmpretrain')
    from mmpretrain.structures import DataSample, MultiTaskDataSample

    teacher = random_teacher(str(tmp_path), kind='gap')
    model = teacher['config']['model']
    tasks = {name: dict(type='LinearClsHead', num_classes=count) for name, count in (('colour', 3), ('shape', 4))}
    model.head = dict(type='MultiTaskHead', in_channels=model.head.in_channels, task_heads=tasks)
    save_random_model(model, teacher['checkpoint'], 'head')
    config = dict(type='dskd_mm.DSKDDistiller', student=model, teacher=teacher)
    for site in ({}, dict(site=dict(classifier='head.task_heads.colour.fc'))):
        with pytest.raises(ValueError, match=r"has the tasks \['colour', 'shape'\].*Distil at the neck instead"):
            MODELS.build({**config, **site})
    distiller = build_distiller({**config, 'site': NECK, 'prior': 'teacher'})
    assert isinstance(distiller, DSKDDistiller) and not distiller.student_spec.is_map
    samples = []
    for i in range(4):
        sample = MultiTaskDataSample()
        sample.set_field(DataSample().set_gt_label(i % 3), 'colour')
        if i:  # not every image is annotated for every task
            sample.set_field(DataSample().set_gt_label(i), 'shape')
        samples.append(sample)
    batch = dict(inputs=torch.rand(4, 3, 32, 32), data_samples=samples)
    assert_distils(distiller, batch)
    assert_the_same(distiller, batch, {'feature', 'head'})
