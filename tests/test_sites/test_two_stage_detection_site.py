"""Two-stage detectors of mmdet: vectors of the student's own proposals, judged by the teacher's box head."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip('mmdet')

import torch
from mmengine.config import ConfigDict
from mmengine.registry import MODELS
from torch import Tensor, nn
from torchvision.ops import box_iou

from dskd_mm.sites import TwoStageDetectionSite, build_site
from dskd_mm.testing import assert_distils, assert_trains, distillation_losses, gradients
from support import (
    DENSE_CLASSES,
    assert_refused,
    build_distiller,
    dense_distiller_config,
    detection_batch,
    detector_config,
    first_not_finite,
    random_boxes,
    watch,
)

# The part that holds the classifier, and the overlap from which a proposal is an object's.
KINDS = {
    'faster_rcnn': ('roi_head.bbox_head', 0.5),
    'cascade_rcnn': ('roi_head.bbox_head.2', 0.7),
    'mask_rcnn': ('roi_head.bbox_head', 0.5),
}
OBJECTS = [random_boxes(3), random_boxes(2, seed=1)]


def build(configs: dict[str, ConfigDict], kind: str, **options: Any) -> Any:
    return build_distiller({**configs[kind], **options})


def batch_for(distiller: nn.Module, kind: str, objects: list = OBJECTS) -> dict[str, Any]:
    return detection_batch(distiller, objects, masks=kind == 'mask_rcnn')


def proposals(model: nn.Module, part: str) -> list:
    """Watch which boxes, (N, 5) with the image's number first, a model's box head gets."""
    return watch(model.get_submodule(part.replace('bbox_head', 'bbox_roi_extractor')), 'forward')


@pytest.mark.parametrize('kind', KINDS)
def test_the_classifier_is_found(kind: str) -> None:
    model = MODELS.build(detector_config(kind))
    site = build_site(None, model)
    assert isinstance(site, TwoStageDetectionSite)
    spec = site.student_spec(model)
    part, _ = KINDS[kind]
    assert spec.part == part and spec.classifiers == spec.features == (f'{part}.fc_cls',)
    assert (spec.io, spec.is_map, spec.sigmoid) == ('input', False, False)
    assert (spec.num_classes, spec.channels) == (DENSE_CLASSES + 1, 16)


def test_mask_heads_are_left_alone(configs: dict[str, ConfigDict]) -> None:
    distiller = build(configs, 'mask_rcnn')
    losses = distiller(**batch_for(distiller, 'mask_rcnn'), mode='loss')
    assert float(losses['loss_mask']) > 0
    total = sum(distillation_losses(losses).values())
    assert not any(gradient is not None for gradient in gradients(total, distiller.student.roi_head.mask_head))


@pytest.mark.parametrize('kind', KINDS)
def test_targets_are_the_labels_of_the_students_proposals(configs: dict[str, ConfigDict], kind: str) -> None:
    """Against overlaps of the boxes that the head was given with the annotated ones."""
    part, overlap = KINDS[kind]
    distiller = build(configs, kind)
    calls, boxes = watch(distiller, 'distill'), proposals(distiller.student, part)
    batch = batch_for(distiller, kind)
    distiller(**batch, mode='loss')
    student, _, target, _ = calls[-1].args
    rois = boxes[0].args[1]
    assert target.probability.shape == (len(rois), DENSE_CLASSES + 1) == student.logits.shape
    expected = [expected_label(roi, batch['data_samples'], overlap) for roi in rois]
    assert target.probability.argmax(dim=1).tolist() == expected
    assert bool((target.probability.sum(dim=1) == 1).all()) and bool((target.weight == 1).all())
    assert int(target.avg_factor) == len(rois)
    assert len(set(expected)) > 1 and DENSE_CLASSES in expected


def expected_label(roi: Tensor, data_samples: list, overlap: float) -> int:
    """The class of the object that a box overlaps most, or that of the background."""
    objects = data_samples[int(roi[0])].gt_instances
    found, which = box_iou(roi[None, 1:], objects.bboxes.tensor if hasattr(objects.bboxes, 'tensor') else objects.bboxes)[
        0
    ].max(0)
    return int(objects.labels[which]) if found >= overlap else DENSE_CLASSES


@pytest.mark.parametrize('kind', KINDS)
def test_the_teacher_looks_at_the_students_proposals(configs: dict[str, ConfigDict], kind: str) -> None:
    part, _ = KINDS[kind]
    distiller = build(configs, kind)
    distiller.load_teacher()
    calls = watch(distiller, 'distill')
    ours, theirs = proposals(distiller.student, part), proposals(distiller.teacher.model, part)
    distiller(**batch_for(distiller, kind), mode='loss')
    assert len(theirs) == 1 and torch.equal(theirs[0].args[1], ours[0].args[1])
    assert not theirs[0].args[1].requires_grad
    teacher = calls[-1].args[1]
    with torch.no_grad():
        torch.testing.assert_close(distiller.classifiers[0](teacher.features[0]), teacher.logits)


@pytest.mark.parametrize('kind', KINDS)
def test_a_student_that_equals_its_teacher_has_nothing_to_imitate(configs: dict[str, ConfigDict], kind: str) -> None:
    config = copy.deepcopy(configs[kind])
    config.loss_weights = dict(virtual=1.0)
    config.student = detector_config(kind, width=6)
    distiller = build_distiller(config)
    distiller.load_teacher()
    distiller.student.load_state_dict(distiller.teacher.model.state_dict())
    losses = distillation_losses(distiller(**batch_for(distiller, kind), mode='loss'))
    assert losses['loss_dskd_logit'].item() == pytest.approx(0, abs=1e-5)
    assert losses['loss_dskd_box'].item() == pytest.approx(0, abs=1e-5)
    assert losses['loss_dskd_virtual'].item() > 1e-2


@pytest.mark.parametrize('stage', [0, 1, 2, -1])
def test_any_stage_of_a_cascade(configs: dict[str, ConfigDict], stage: int) -> None:
    distiller = build(configs, 'cascade_rcnn', site=dict(stage=stage))
    spec = distiller.student_spec
    assert spec.part == distiller.teacher_spec.part == f'roi_head.bbox_head.{stage % 3}'
    heads = distiller.student.roi_head.bbox_head
    losses = distiller(**batch_for(distiller, 'cascade_rcnn'), mode='loss')
    reached = [any(g is not None for g in gradients(losses['loss_dskd_logit'], head.fc_cls)) for head in heads]
    assert reached == [index == stage % 3 for index in range(3)]


def test_a_cascade_may_teach_a_detector_of_one_stage(tmp_path: Path) -> None:
    config = dense_distiller_config('faster_rcnn', str(tmp_path), teacher=dict(kind='cascade_rcnn'))
    distiller = build_distiller(config)
    assert (distiller.student_spec.part, distiller.teacher_spec.part) == ('roi_head.bbox_head', 'roi_head.bbox_head.2')
    assert_distils(distiller, batch_for(distiller, 'faster_rcnn'))


# kind, how the config is spoilt, what the message says
REFUSED: dict[str, tuple[str, Callable[[ConfigDict], Any], list[str]]] = {
    'classes': (
        'faster_rcnn',
        lambda config: config.teacher.config.model.roi_head.bbox_head.update(num_classes=5),
        ['student classifies 4 classes', 'teacher 6', 'roi_head.bbox_head.fc_cls', 'must know the same classes'],
    ),
    'stage': (
        'cascade_rcnn',
        lambda config: config.update(site=dict(stage=3)),
        ['stage of TwoStageDetectionSite', 'one of the 3 stages', 'got 3'],
    ),
    'another task': (
        'faster_rcnn',
        lambda config: config.teacher.config.model.pop('roi_head'),
        ["no 'roi_head.bbox_head'", 'another task'],
    ),
    'a layer that is not linear': (
        'faster_rcnn',
        lambda config: config.update(site=dict(classifier='relu')),
        ["student's classification layer 'roi_head.bbox_head.relu'", 'linear', 'ReLU', 'dskd_mm.NeckSite'],
    ),
    'an unknown layer': (
        'faster_rcnn',
        lambda config: config.update(site=dict(teacher_classifier='fc_class')),
        ["teacher's box head", "'fc_class'", "'fc_cls'"],
    ),
}


@pytest.mark.parametrize('name', REFUSED)
def test_a_pair_that_does_not_correspond_is_refused_when_it_is_built(configs: dict[str, ConfigDict], name: str) -> None:
    kind, spoil, words = REFUSED[name]
    assert_refused(configs[kind], spoil, words)


def test_features_that_are_not_finite_are_named(configs: dict[str, ConfigDict]) -> None:
    distiller = build(configs, 'faster_rcnn')
    batch = batch_for(distiller, 'faster_rcnn')
    with torch.no_grad():
        distiller.student.roi_head.bbox_head.shared_fcs[1].bias[0] = torch.nan
    assert first_not_finite(distiller, batch) == "input of 'roi_head.bbox_head.fc_cls' in the student"


@pytest.mark.parametrize('kind', ['faster_rcnn', 'cascade_rcnn'])
def test_without_a_teachers_opinion_no_backbone_is_built(configs: dict[str, ConfigDict], kind: str, tmp_path: Path) -> None:
    config = copy.deepcopy(configs[kind])
    state = torch.load(config.teacher.checkpoint)['state_dict']
    torch.save({key: value for key, value in state.items() if KINDS[kind][0] in key}, tmp_path / 'head.pth')
    config.teacher.checkpoint = str(tmp_path / 'head.pth')
    config.teacher.config.model.backbone = dict(type='NoBackboneOfThisName')
    distiller = build_distiller({**config, 'target': 'label', 'loss_weights': dict(logit=0)})
    assert_distils(distiller, batch_for(distiller, kind))
    assert distiller.teacher.is_loaded and distiller.teacher.model is None


@pytest.mark.parametrize('autoencoder', [None, dict(latent_channels=4)], ids=['', 'autoencoder'])
def test_a_batch_without_any_proposal(configs: dict[str, ConfigDict], autoencoder: dict | None) -> None:
    """What mmdet survives, distillation does, too; and the next batch is as it would have been."""
    distiller = build(configs, 'faster_rcnn', autoencoder=autoencoder)
    rpn = distiller.student.rpn_head
    propose = rpn.loss_and_predict

    def nothing(*args: Any, **kwargs: Any) -> tuple:
        losses, results = propose(*args, **kwargs)
        return losses, [result[:0] for result in results]

    rpn.loss_and_predict = nothing
    batch = batch_for(distiller, 'faster_rcnn', [[], []])
    total, log = distiller.parse_losses(distiller(**batch, mode='loss'))
    assert all(bool(value.isfinite()) for value in log.values()), log
    assert {key: value.item() for key, value in distillation_losses(log).items() if value} == {}
    total.backward()
    assert all(bool(value.isfinite().all()) for value in distiller.state_dict().values())
    rpn.loss_and_predict = propose
    _, log = distiller.parse_losses(distiller(**batch_for(distiller, 'faster_rcnn'), mode='loss'))
    assert all(bool(value.isfinite()) for value in log.values()), log
    assert log['dskd_std'].item() > 0.1


SEESAW = dict(type='SeesawLoss', p=0.8, q=2.0, num_classes=DENSE_CLASSES)


@pytest.mark.parametrize('kind', ['faster_rcnn', 'cascade_rcnn'])
def test_outputs_beside_classes_and_background_are_refused_and_train_at_the_neck(tmp_path: Path, kind: str) -> None:
    config = dense_distiller_config(kind, str(tmp_path))

    def spoil(model: ConfigDict) -> None:
        heads = model.roi_head.bbox_head
        for head in heads if isinstance(heads, list) else [heads]:
            head.loss_cls = SEESAW

    refused = copy.deepcopy(config)
    spoil(refused.teacher.config.model)
    with pytest.raises(ValueError, match=r"teacher's .*fc_cls'.* the 3 classes .* 5 for its SeesawLoss.*NeckSite"):
        build_distiller(refused)
    assert_refused(config, lambda cfg: spoil(cfg.student), ["student's", 'SeesawLoss', "site=dict(type='dskd_mm.NeckSite')"])
    spoil(config.student)
    distiller = build_distiller({**config, 'site': dict(type='dskd_mm.NeckSite')})
    assert_trains(distiller, detection_batch(distiller, OBJECTS), {'anchor', 'diff', 'lsh'})


def test_background_is_told_by_outputs_not_by_the_loss() -> None:
    config = detector_config('faster_rcnn')
    config.roi_head.bbox_head.loss_cls = dict(type='CrossEntropyLoss', use_sigmoid=True)
    model = MODELS.build(config)
    spec = build_site(None, model).student_spec(model)
    assert (spec.sigmoid, spec.num_classes, spec.num_labels) == (True, DENSE_CLASSES + 1, DENSE_CLASSES)
