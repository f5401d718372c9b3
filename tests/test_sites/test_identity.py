"""A student that is its teacher has nothing to learn from it: no difference of features, logits or boxes, whatever the head."""

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from mmengine.logging import MessageHub
from torch import nn

from dskd_mm.distillers import DSKDDistiller
from dskd_mm.losses import BoxLoss
from dskd_mm.registry import MODELS
from dskd_mm.testing import TOY_KINDS, classifier_config, make_identical, random_batch, random_teacher
from dskd_mm.testing.toy import save_random_model
from support import (
    DENSE_SIZE,
    DETECTORS,
    SEGMENTORS,
    ZOO_DETECTORS,
    build_distiller,
    dense_distiller_config,
    detection_batch,
    random_boxes,
    segmentation_batch,
    watch,
)


@MODELS.register_module(force=True)
class TokenPair(nn.Module):
    """Gives a head two different vectors, as DeiT and Conformer have them."""

    def forward(self, feats: tuple) -> tuple:
        return ([feats[-1], feats[-1].flip(1)],)


OBJECTS = [random_boxes(3), random_boxes(2, seed=1)]
REFUSED = ['autoassign', 'paa', 'freeanchor', 'sabl', 'ga_retinanet', 'detr', 'ssd', 'yolov3']
"""Detectors whose head selects what it classifies, has anchors of its own, or no linear classifier."""
MASKED = ['mask_rcnn', 'condinst']
DETECTORS_AT_THE_HEAD = [kind for kind in [*DETECTORS, *ZOO_DETECTORS] if kind not in REFUSED and find_spec('mmdet')]


DUAL_HEADS = {
    'deit': (dict(type='DeiTClsHead', num_classes=5, in_channels=24), 'head.layers.head'),
    'efficientformer': (dict(type='EfficientFormerClsHead', num_classes=5, in_channels=24, distillation=True), 'head.head'),
    'levit': (dict(type='LeViTClsHead', num_classes=5, in_channels=24), 'head.head.linear'),
    'conformer': (dict(type='ConformerHead', num_classes=5, in_channels=[24, 24]), 'head.conv_cls_head'),
}
"""Heads of mmpretrain that average or add two linear layers, and one of these."""


@pytest.mark.parametrize('kind', DUAL_HEADS)
def test_logits_of_a_teacher_are_what_it_says_not_one_of_its_layers(tmp_path, kind: str) -> None:
    teacher = random_teacher(str(tmp_path), kind='vit')
    model, (head, classifier) = teacher['config']['model'], DUAL_HEADS[kind]
    model.head = head
    if kind in ('deit', 'conformer'):  # the heads get a pair of vectors
        model.neck = dict(type='dskd_mm.TokenPair')
    save_random_model(model, teacher['checkpoint'], 'head')
    config = dict(type='dskd_mm.DSKDDistiller', student=classifier_config('gap'), teacher=teacher, prior='teacher')
    with pytest.raises(ValueError, match=r'teacher_classifier'):
        build_distiller(config)
    distiller = build_distiller({**config, 'site': dict(teacher_classifier=classifier)})
    images, samples = random_batch()
    calls = watch(distiller, 'distill')
    distiller(images, samples, mode='loss')
    said = distiller.teacher.model(images, mode='tensor')
    expected = said if isinstance(said, torch.Tensor) else said[0] + said[1]
    torch.testing.assert_close(calls[-1].args[1].logits, expected)
    part = distiller.teacher.model.get_submodule(classifier)
    assert part.weight.shape == distiller.teacher.classifiers[0].weight.shape  # which guides


def assert_nothing_to_learn(distiller: Any, batch: dict[str, Any]) -> None:
    """All that a loss may compare is equal, and the losses that compare predictions are zero."""
    assert isinstance(distiller, DSKDDistiller)
    calls = watch(distiller, 'distill')
    make_identical(distiller)
    losses = distiller(**batch, mode='loss')
    student, teacher = calls[-1].args[:2]
    for name in ('features', 'logit_levels', 'box_levels'):
        ours, theirs = getattr(student, name), getattr(teacher, name)
        assert len(ours) == len(theirs)
        for own, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f'{name}: {text}')
    if student.box_levels:
        assert float(losses['loss_dskd_box']) < 1e-4
        target = calls[-1].args[2]
        if bool((target.foreground > 0).any()):  # not because nothing is compared
            off = BoxLoss()(2 * student.boxes + 1, teacher.boxes, target, distiller.student_spec.boxes.kind)
            assert float(off) > 1e-3
    if type(distiller.student).__name__ == 'YOLOF':  # whose classes have an objectness added
        own = distiller.student.eval()(**batch, mode='tensor')[0]
        distiller.student.train()
        torch.testing.assert_close(student.logit_levels, list(own), rtol=1e-4, atol=1e-5)
    if 'loss_dskd_logit' in losses:
        assert abs(float(losses['loss_dskd_logit'])) < 1e-4


@pytest.fixture
def epoch() -> Iterator[Callable[[int], None]]:
    """Tells mmdet which epoch it is: TOOD has another assignment, and another loss, in its first four."""
    hub = MessageHub.get_current_instance()
    yield lambda number: hub.update_info('epoch', number)
    hub.runtime_info.pop('epoch', None)


@pytest.mark.parametrize('kind', DETECTORS_AT_THE_HEAD)
def test_detectors(tmp_path, epoch, kind: str) -> None:
    epoch(5)
    # mmdet's CondInst is no SingleStageDetector, but its boxes are those of one.
    site = dict(site=dict(type='dskd_mm.DenseDetectionSite')) if kind == 'condinst' else {}
    distiller = build_distiller(dense_distiller_config(kind, str(tmp_path), student=dict(width=6), **site))
    assert_nothing_to_learn(distiller, detection_batch(distiller, OBJECTS, masks=kind in MASKED))


@pytest.mark.skipif(not find_spec('mmdet'), reason='mmdet is not installed')
def test_the_first_epochs_of_tood(tmp_path, epoch) -> None:
    epoch(0)
    distiller = build_distiller(dense_distiller_config('tood', str(tmp_path), student=dict(width=6)))
    assert_nothing_to_learn(distiller, detection_batch(distiller, OBJECTS))


@pytest.mark.skipif(not find_spec('mmseg'), reason='mmseg is not installed')
@pytest.mark.parametrize('kind', SEGMENTORS)
def test_segmenters(tmp_path, kind: str) -> None:
    distiller = build_distiller(dense_distiller_config(kind, str(tmp_path), student=dict(width=6)))
    labels = torch.zeros(2, *DENSE_SIZE, dtype=torch.long)
    labels[:, 20:45] = 1
    assert_nothing_to_learn(distiller, segmentation_batch(distiller, labels))


@pytest.mark.parametrize('kind', TOY_KINDS)
def test_classifiers(tmp_path, kind: str) -> None:
    teacher = random_teacher(str(tmp_path), kind=kind)
    distiller = build_distiller(dict(type='dskd_mm.DSKDDistiller', student=teacher['config']['model'], teacher=teacher))
    images, samples = random_batch(multi_label=kind == 'multi_label')
    assert_nothing_to_learn(distiller, dict(inputs=images, data_samples=samples))
