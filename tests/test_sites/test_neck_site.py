"""Detectors without a linear classifier of their own, guided by the loss of the teacher's whole head."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip('mmdet')

import torch
from mmengine.config import ConfigDict
from mmengine.registry import MODELS
from torch import nn

from dskd_mm.sites import NeckSite, build_site
from dskd_mm.testing import assert_distils
from support import (
    assert_refused,
    build_distiller,
    dense_distiller_config,
    detection_batch,
    detector_config,
    first_not_finite,
    random_boxes,
    watch,
)

# DETR by itself, the others because they are told to.
SITES = {'retinanet': 'dskd_mm.NeckSite', 'faster_rcnn': 'dskd_mm.NeckSite'}
KINDS = ['detr', *SITES]
OBJECTS = [random_boxes(3), random_boxes(2, seed=1)]


def build(configs: dict[str, ConfigDict], kind: str, **options: Any) -> Any:
    return build_distiller({**configs[kind], **options})


@pytest.mark.parametrize('kind', KINDS)
def test_the_neck_is_tapped(configs: dict[str, ConfigDict], kind: str) -> None:
    model = MODELS.build(detector_config(kind))
    site = build_site(configs[kind].get('site'), model)
    assert isinstance(site, NeckSite)
    spec = site.student_spec(model)
    assert (spec.features, spec.io, spec.index, spec.channels) == (('neck',), 'output', 'all', 8)
    assert spec.classifiers == () and spec.num_classes == 0


@pytest.mark.parametrize('kind', ['detr', 'retinanet'])
def test_the_head_judges_as_the_teacher_itself_would(configs: dict[str, ConfigDict], kind: str) -> None:
    """On the features of the teacher's own neck, the loss is the teacher's own: nothing of it is computed anew."""
    distiller = build(configs, kind)
    distiller.load_teacher()
    batch = detection_batch(distiller, OBJECTS)
    teacher = distiller.teacher.model
    with torch.no_grad():
        expected = teacher.parse_losses(teacher.loss(*batch.values()))[0]
        maps = teacher.extract_feat(batch['inputs'])
        judged = distiller.site.head_loss(distiller.teacher, maps, *batch.values())
        other = distiller.site.head_loss(distiller.teacher, [level + 1 for level in maps], *batch.values())
        # The teacher is itself again.
        again = teacher.parse_losses(teacher.loss(*batch.values()))[0]
    torch.testing.assert_close(judged, expected)
    torch.testing.assert_close(again, expected)
    assert not torch.allclose(other, expected)


def test_a_head_that_predicts_otherwise_while_it_trains_judges_as_in_training(tmp_path: Path) -> None:
    """FCOS with normalised boxes returns them in units of the stride to its loss, and in pixels else."""
    config = dense_distiller_config('fcos', str(tmp_path), site=dict(type='dskd_mm.NeckSite'))
    config.teacher.config.model.bbox_head.norm_on_bbox = True
    distiller = build_distiller(config)
    distiller.load_teacher()
    batch, teacher = detection_batch(distiller, OBJECTS), distiller.teacher.model
    with torch.no_grad():
        maps = teacher.extract_feat(batch['inputs'])
        judged = distiller.site.head_loss(distiller.teacher, maps, *batch.values())
        assert not any(module.training for module in teacher.modules())
        in_pixels = teacher.parse_losses(teacher.loss(*batch.values()))[0]
        teacher.bbox_head.train()  # group norms: nothing else changes
        expected = teacher.parse_losses(teacher.bbox_head.loss(maps, batch['data_samples']))[0]
    torch.testing.assert_close(judged, expected)
    assert not torch.allclose(judged, in_pixels)


@pytest.mark.parametrize('kind', KINDS)
def test_the_teacher_as_prior_runs_up_to_its_neck(configs: dict[str, ConfigDict], kind: str) -> None:
    distiller = build(configs, kind, prior='teacher')
    distiller.load_teacher()
    seen = watch(distiller.teacher.model, 'extract_feat')
    assert_distils(distiller, detection_batch(distiller, OBJECTS))
    assert len(seen) == 1


def test_one_dict_for_student_and_teacher(tmp_path: Path) -> None:
    """mmdet's heads write into the configs that they are built from."""
    config = dense_distiller_config('detr', str(tmp_path))
    before = copy.deepcopy(config.teacher.config)
    config.student = config.teacher.config.model
    distiller = build_distiller(config)
    distiller(**detection_batch(distiller, OBJECTS), mode='loss')
    assert config.teacher.config == before


# kind, how the config is spoilt, what the message says
REFUSED: dict[str, tuple[str, Callable[[ConfigDict], Any], list[str]]] = {
    'a local target': (
        'detr',
        lambda config: config.update(target='local'),
        ['NeckSite has no linear classifier', "expects target='label' or 'soft'", "target='local'"],
    ),
    'a virtual teacher': (
        'retinanet',
        lambda config: config.update(loss_weights=dict(virtual=1.0)),
        ['NeckSite has no linear classifier', 'virtual=0, logit=0', "'virtual': 1.0"],
    ),
    'a teacher without a neck': (
        'retinanet',
        lambda config: config.teacher.config.model.update(neck=None),
        ["student's neck makes 5 levels", "the teacher's 4"],  # those of its backbone
    ),
    'other levels': (
        'retinanet',
        lambda config: config.teacher.config.model.neck.update(num_outs=4),
        ["student's neck makes 5 levels", "the teacher's 4", 'the same num_outs'],
    ),
    'other levels of a mapper': (
        'detr',
        lambda config: config.teacher.config.model.neck.update(num_outs=3),
        ["student's neck makes 1 levels", "the teacher's 3"],
    ),
}


@pytest.mark.parametrize('name', REFUSED)
def test_what_a_neck_cannot_do_is_refused_when_it_is_built(configs: dict[str, ConfigDict], name: str) -> None:
    kind, spoil, words = REFUSED[name]
    assert_refused(configs[kind], spoil, words)


def test_a_neck_that_does_not_tell_its_channels() -> None:
    model = MODELS.build(detector_config('retinanet'))
    model.neck = nn.Sequential(nn.Conv2d(4, 8, 1), nn.Conv2d(8, 16, 1))
    with pytest.raises(
        ValueError, match=r"(?s)'neck'\] in the student .*not found.*Give them in the config: site=dict\(channels=\.\.\.\)\."
    ):
        NeckSite().student_spec(model)
    assert NeckSite(channels=16).student_spec(model).channels == 16


def test_features_that_are_not_finite_are_named_with_their_level(configs: dict[str, ConfigDict]) -> None:
    distiller = build(configs, 'retinanet')
    with torch.no_grad():
        distiller.student.neck.fpn_convs[1].conv.bias[0] = torch.nan
    assert first_not_finite(distiller, detection_batch(distiller, OBJECTS)) == "output of 'neck' in the student, number 1,"
