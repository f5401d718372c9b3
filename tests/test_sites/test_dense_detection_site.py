"""Dense detectors of mmdet: where they are tapped, what their targets are, and that they learn from a teacher."""

import copy
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip('mmdet')

import torch
from mmdet.structures.bbox import bbox_overlaps, distance2bbox
from mmengine.config import ConfigDict
from mmengine.registry import MODELS
from torch import Tensor, nn

from dskd_mm.sites import DenseDetectionSite, build_site
from dskd_mm.structures import Target
from dskd_mm.testing import assert_distils, assert_trains, distillation_losses
from support import (
    DENSE_CLASSES,
    Call,
    assert_refused,
    build_distiller,
    dense_distiller_config,
    detection_batch,
    detector_config,
    first_not_finite,
    random_boxes,
    watch,
)

KINDS = ['retinanet', 'retinanet_softmax', 'fcos', 'atss', 'gfl', 'rtmdet']
# Classification layers, predictions at each location, number of classes with that of the background.
SPECS = {
    'retinanet': (('bbox_head.retina_cls',), 9, DENSE_CLASSES),
    'retinanet_softmax': (('bbox_head.retina_cls',), 9, DENSE_CLASSES + 1),
    'fcos': (('bbox_head.conv_cls',), 1, DENSE_CLASSES),
    'atss': (('bbox_head.atss_cls',), 1, DENSE_CLASSES),
    'gfl': (('bbox_head.gfl_cls',), 1, DENSE_CLASSES),
    'rtmdet': (tuple(f'bbox_head.rtm_cls.{level}' for level in range(3)), 1, DENSE_CLASSES),
}
STRIDES = [(8, 8), (16, 16), (32, 32), (64, 64), (128, 128)]
OBJECTS = [random_boxes(3), random_boxes(2, seed=1)]


def build(configs: dict[str, ConfigDict], kind: str, **options: Any) -> Any:
    return build_distiller({**configs[kind], **options})


@pytest.mark.parametrize('kind', KINDS)
def test_the_classifier_is_found(kind: str) -> None:
    model = MODELS.build(detector_config(kind))
    site = build_site(None, model)
    assert isinstance(site, DenseDetectionSite)
    spec = site.student_spec(model)
    assert (spec.classifiers, spec.num_priors, spec.num_classes) == SPECS[kind]
    assert spec.features == spec.classifiers and spec.io == 'input'
    assert spec.sigmoid == (kind != 'retinanet_softmax')
    assert spec.strides == tuple(STRIDES[: 3 if kind == 'rtmdet' else 5])
    assert spec.channels == 8


def observe(distiller: Any, batch: dict[str, Any]) -> Call:
    """The arguments of one step's distillation: what was seen of student and teacher, and the target."""
    calls = watch(distiller, 'distill')
    distiller(**batch, mode='loss')
    return calls[-1]


def assignment(kind: str, head: nn.Module, batch: int) -> Callable[[], tuple[Tensor, Tensor, Tensor]]:
    """Labels, weights and scores (B, M) as the head's own ``get_targets`` returned them."""
    targets, losses = watch(head, 'get_targets'), watch(head, 'loss_by_feat')

    def read() -> tuple[Tensor, Tensor, Tensor]:
        result = targets[-1].result
        if kind == 'fcos':
            labels = torch.cat([level.reshape(batch, -1) for level in result[0]], dim=1)
            return labels, torch.ones_like(labels, dtype=torch.float32), torch.ones_like(labels, dtype=torch.float32)
        first = 0 if kind.startswith('retinanet') else 1
        labels, weights = (torch.cat(list(result[first + i]), dim=1) for i in range(2))
        scores = torch.ones_like(weights)
        if kind == 'gfl':
            scores = qualities(head, losses[-1].args[1], result)
        if kind == 'rtmdet':
            scores = torch.cat(list(result[4]), dim=1)
        return labels, weights, scores

    return read


def qualities(head: Any, predictions: list[Tensor], result: tuple) -> Tensor:
    """Overlaps of the predicted boxes of GFL with those they are assigned, (B, M)."""
    scores = []
    for level, boxes in enumerate(predictions):
        stride, batch = STRIDES[level][0], len(boxes)
        anchors, targets = result[0][level], result[3][level]
        distances = head.integral(boxes.detach().permute(0, 2, 3, 1).reshape(-1, boxes.shape[1])) * stride
        centres = (anchors[..., :2] + anchors[..., 2:]).reshape(-1, 2) / 2
        decoded = distance2bbox(centres, distances)
        scores.append(bbox_overlaps(decoded, targets.reshape(-1, 4), is_aligned=True).reshape(batch, -1))
    return torch.cat(scores, dim=1)


@pytest.mark.parametrize('kind', KINDS)
def test_the_target_is_the_students_own_assignment(configs: dict[str, ConfigDict], kind: str) -> None:
    distiller = build(configs, kind)
    read = assignment(kind, distiller.student.bbox_head, 2)
    target = observe(distiller, detection_batch(distiller, OBJECTS)).args[2]
    labels, weights, scores = read()
    classes = SPECS[kind][2]
    expected = torch.zeros(2, classes, labels.shape[1])
    for image, place in itertools.product(range(2), range(labels.shape[1])):
        label = int(labels[image, place])
        if label < classes:
            expected[image, label, place] = scores[image, place]
    torch.testing.assert_close(target.probability, expected)
    torch.testing.assert_close(target.weight[:, 0], weights)
    foreground = (labels < DENSE_CLASSES) & (labels >= 0) & (weights > 0)
    assert bool(foreground.any())
    # Independent classes are divided by the number of objects' predictions, exclusive ones by that of all.
    counted = weights > 0 if kind == 'retinanet_softmax' else foreground & (scores > 0)
    assert int(target.avg_factor) == int(counted.sum())
    assert target.focus == (0 if kind == 'retinanet_softmax' else 1)


def packed_places(sizes: list[tuple[int, int]], anchors: int) -> list[tuple[float, float]]:
    """Centres (x, y) in the image of all predictions, in the order of a packed pyramid."""
    return [
        ((column + 0.5) * STRIDES[level][0], (row + 0.5) * STRIDES[level][1])
        for level, (height, width) in enumerate(sizes)
        for row in range(height)
        for column in range(width)
        for _ in range(anchors)
    ]


@pytest.mark.parametrize('kind', KINDS)
def test_the_target_lies_where_the_object_is(configs: dict[str, ConfigDict], kind: str) -> None:
    left, top, right, bottom, label = 56.0, 4.0, 92.0, 32.0, 2
    distiller = build(configs, kind)
    call = observe(distiller, detection_batch(distiller, [[], [(left, top, right, bottom, label)]]))
    student, target = call.args[0], call.args[2]
    places = packed_places([feature.shape[2:] for feature in student.features], SPECS[kind][1])
    found = target.probability[:, :DENSE_CLASSES] * target.weight
    assert not bool(found[0].any())
    assert found[1].amax(dim=1).nonzero().flatten().tolist() == [label]
    for index in found[1, label].nonzero().flatten().tolist():
        x, y = places[index]
        # mmdet's anchors are centred on a cell's corner, not on its middle.
        margin = 8
        assert left - margin <= x <= right + margin and top - margin <= y <= bottom + margin


@pytest.mark.parametrize('kind', KINDS)
def test_the_teachers_classifier_tells_the_teachers_own_logits(configs: dict[str, ConfigDict], kind: str) -> None:
    """Features, logits and targets are packed alike, levels, locations and anchors in one order."""
    distiller = build(configs, kind)
    call = observe(distiller, detection_batch(distiller, OBJECTS))
    student, teacher, target = call.args[:3]
    classifiers = distiller.classifiers * (len(teacher.features) // len(distiller.classifiers))
    with torch.no_grad():
        logits = [classify(level).flatten(2) for classify, level in zip(classifiers, teacher.features, strict=True)]
    torch.testing.assert_close(torch.cat(logits, dim=2), teacher.logits)
    assert teacher.logits.shape == student.logits.shape == target.probability.shape


@pytest.mark.parametrize('kind', KINDS)
def test_a_student_that_equals_its_teacher_has_nothing_to_imitate(configs: dict[str, ConfigDict], kind: str) -> None:
    config = copy.deepcopy(configs[kind])
    config.loss_weights = dict(virtual=1.0)
    config.student = detector_config(kind, width=6)
    distiller = build_distiller(config)
    distiller.load_teacher()
    distiller.student.load_state_dict(distiller.teacher.model.state_dict())
    distiller.student.eval()  # the batch norms' averages, as in the teacher
    losses = distillation_losses(distiller(**detection_batch(distiller, OBJECTS), mode='loss'))
    assert float(losses['loss_dskd_logit']) == pytest.approx(0, abs=1e-4)
    assert float(losses['loss_dskd_box']) == pytest.approx(0, abs=1e-4)
    assert float(losses['loss_dskd_virtual']) > 1e-2


def set_teacher(change: Callable[[ConfigDict], Any]) -> Callable[[ConfigDict], Any]:
    return lambda config: change(config.teacher.config.model)


def other_levels(model: ConfigDict) -> None:
    model.neck.num_outs = 4
    model.bbox_head.anchor_generator.strides = [8, 16, 32, 64]


# kind, how the config is spoilt, what the message says
REFUSED: dict[str, tuple[str, Callable[[ConfigDict], Any], list[str]]] = {
    'classes': (
        'retinanet',
        set_teacher(lambda model: model.bbox_head.update(num_classes=5)),
        ['student classifies 3 classes', 'teacher 5', 'bbox_head.retina_cls', 'must know the same classes'],
    ),
    'anchors': (
        'retinanet',
        set_teacher(lambda model: model.bbox_head.anchor_generator.update(ratios=[1.0])),
        ['student makes 9 predictions', 'teacher 3', 'the same anchors', 'dskd_mm.NeckSite'],
    ),
    'strides': (
        'fcos',
        set_teacher(lambda model: model.bbox_head.update(strides=[4, 8, 16, 32, 64])),
        ['((8, 8), (16, 16),', '((4, 4), (8, 8),', 'strides', 'dskd_mm.NeckSite'],
    ),
    'levels': (
        'gfl',
        set_teacher(other_levels),
        ['(64, 64), (128, 128))', '(32, 32), (64, 64))', 'do not correspond'],
    ),
    'an output for the background': (
        'retinanet_softmax',
        set_teacher(lambda model: model.bbox_head.update(loss_cls=dict(type='FocalLoss', use_sigmoid=True))),
        ["student's classifier has 4 outputs for 3 classes, the teacher's 3", 'use_sigmoid', 'dskd_mm.NeckSite'],
    ),
    'another task': (
        'fcos',
        set_teacher(lambda model: model.pop('bbox_head')),
        ["no 'bbox_head'", 'another task', 'dskd_mm.NeckSite'],
    ),
    'an unknown layer': (
        'fcos',
        lambda config: config.update(site=dict(classifier='bbox_head.conv_clss')),
        ["student's head", "'conv_clss'", "'conv_cls'"],
    ),
    'a layer that is no classifier': (
        'fcos',
        lambda config: config.update(site=dict(teacher_classifier='conv_reg')),
        ["teacher's classification layers ['conv_reg']", '1 x 3 outputs', '(12, 4)'],
    ),
}


@pytest.mark.parametrize('name', REFUSED)
def test_a_pair_that_does_not_correspond_is_refused_when_it_is_built(configs: dict[str, ConfigDict], name: str) -> None:
    kind, spoil, words = REFUSED[name]
    assert_refused(configs[kind], spoil, words)


def with_head(**head: Any) -> nn.Module:
    """A model whose head is another one."""
    model = MODELS.build(detector_config('fcos'))
    model.bbox_head = MODELS.build(dict(_scope_='mmdet', num_classes=DENSE_CLASSES, **head))
    return model


def test_levels_of_unequal_anchors_are_refused() -> None:
    sizes = dict(min_sizes=[8, 16], max_sizes=[16, 32], strides=[8, 16], ratios=[[2], [2, 3]])
    anchors = dict(type='SSDAnchorGenerator', scale_major=False, **sizes)
    model = with_head(type='SSDHead', in_channels=(8, 8), anchor_generator=anchors)
    with pytest.raises(ValueError, match=r'SSDHead is expected .* same number of priors .* \[4, 6\] priors'):
        DenseDetectionSite().student_spec(model)


def test_relatives_have_their_classifier_found_too() -> None:
    model = with_head(type='RepPointsHead', in_channels=8, feat_channels=8, point_feat_channels=8, norm_cfg=None)
    spec = DenseDetectionSite().student_spec(model)
    assert (spec.classifiers, spec.num_priors) == (('bbox_head.reppoints_cls_out',), 1)


def test_features_that_are_not_finite_are_named_with_their_level(configs: dict[str, ConfigDict]) -> None:
    distiller = build(configs, 'retinanet')
    batch = detection_batch(distiller, OBJECTS)
    with torch.no_grad():
        distiller.student.neck.fpn_convs[2].conv.bias[0] = torch.nan
    assert first_not_finite(distiller, batch) == "input of 'bbox_head.retina_cls' in the student, number 2,"


@pytest.mark.parametrize('kind', ['retinanet', 'rtmdet'])
def test_without_a_teachers_opinion_no_backbone_is_built(configs: dict[str, ConfigDict], kind: str, tmp_path: Path) -> None:
    config = copy.deepcopy(configs[kind])
    state = torch.load(config.teacher.checkpoint)['state_dict']
    torch.save({key: value for key, value in state.items() if 'bbox_head' in key}, tmp_path / 'head.pth')
    config.teacher.checkpoint = str(tmp_path / 'head.pth')
    config.teacher.config.model.backbone = dict(type='NoBackboneOfThisName')
    distiller = build_distiller({**config, 'target': 'label', 'loss_weights': dict(logit=0)})
    assert_distils(distiller, detection_batch(distiller, OBJECTS))
    assert distiller.teacher.is_loaded and distiller.teacher.model is None


@pytest.mark.parametrize('prior', ['student', 'teacher'])
@pytest.mark.parametrize('target', ['label', 'soft'])
def test_priors_and_targets(configs: dict[str, ConfigDict], prior: str, target: str) -> None:
    distiller = build(configs, 'rtmdet', prior=prior, target=target, autoencoder=dict(latent_channels=4))
    assert_distils(distiller, detection_batch(distiller, OBJECTS))


def test_every_class_is_hashed_and_nothing_that_is_ignored() -> None:
    """One location of each class in 1000, half of which are ignored and the others background."""
    site, count, length = DenseDetectionSite(vectors_per_image=8), 3, 1000
    probability, weight = torch.zeros(1, count, length), torch.ones(1, 1, length)
    for label in range(count):
        probability[0, label, 100 * label] = 0.5  # a quality score
    weight[:, :, 500:] = 0
    packed = torch.arange(length, dtype=torch.float32).reshape(1, 1, length)
    counts = torch.zeros(length)
    for seed in range(50):
        (vectors,), chosen = site.hash_vectors([packed], Target(probability, weight), torch.Generator().manual_seed(seed))
        assert vectors.shape == (8, 1) and chosen is not None and bool(chosen.all())
        assert len(vectors.unique()) == 8
        counts[vectors.long().flatten()] += 1
    # By a plain choice of 8 in 500 they would be met once in 62 draws.
    assert counts[[0, 100, 200]].min() >= 45 and not bool(counts[500:].any())


def test_a_head_that_classifies_in_a_way_of_its_own_is_sent_to_the_neck_and_trains_there(tmp_path: Path) -> None:
    config = dense_distiller_config('freeanchor', str(tmp_path))
    distiller = build_distiller(config)
    with pytest.raises(ValueError, match=r"got \[\] of them.*site=dict\(type='dskd_mm.NeckSite'\)"):
        distiller(**detection_batch(distiller, OBJECTS), mode='loss')
    distiller = build_distiller({**config, 'site': dict(type='dskd_mm.NeckSite')})
    assert_trains(distiller, detection_batch(distiller, OBJECTS), {'anchor', 'diff', 'lsh'})
