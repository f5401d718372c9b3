"""A student that is its teacher has nothing to learn from it: no difference of features, logits or boxes, whatever the head."""

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from mmengine.logging import MessageHub
from mmengine.runner import load_state_dict
from torch import nn

from dskd_mm.distillers import DSKDDistiller
from dskd_mm.losses import BoxLoss
from dskd_mm.testing import TOY_KINDS, random_batch, random_teacher
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

OBJECTS = [random_boxes(3), random_boxes(2, seed=1)]
REFUSED = ['autoassign', 'paa', 'freeanchor', 'sabl', 'ga_retinanet', 'detr']
"""Detectors whose head selects what it classifies, has anchors of its own, or no linear classifier."""
MASKED = ['mask_rcnn', 'condinst']
DETECTORS_AT_THE_HEAD = [kind for kind in [*DETECTORS, *ZOO_DETECTORS] if kind not in REFUSED and find_spec('mmdet')]


def identical(distiller: Any) -> Any:
    """The same distiller, its student with the teacher's weights and, like it, without batch statistics and dropout."""
    distiller.load_teacher()
    load_state_dict(distiller.student, distiller.teacher.require_model().state_dict(), strict=True)
    for module in distiller.student.modules():
        if isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.modules.dropout._DropoutNd)):
            module.eval()
        if type(module).__name__ == 'DropPath':
            module.eval()
    return distiller


def assert_nothing_to_learn(distiller: Any, batch: dict[str, Any]) -> None:
    """All that a loss may compare is equal, and the losses that compare predictions are zero."""
    assert isinstance(distiller, DSKDDistiller)
    calls = watch(distiller, 'distill')
    losses = identical(distiller)(**batch, mode='loss')
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
