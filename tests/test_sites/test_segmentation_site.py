"""Segmenters of mmseg: every pixel of the decode head's last layer, judged by the teacher's."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip('mmseg')

import torch
from mmengine.config import ConfigDict
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn import functional as F

from dskd_mm.sites import SegmentationSite, build_site
from dskd_mm.testing import assert_distils, distillation_losses, gradients
from support import (
    DENSE_CLASSES,
    DENSE_SIZE,
    SEGMENTORS,
    assert_refused,
    build_distiller,
    dense_distiller_config,
    first_not_finite,
    segmentation_batch,
    segmentor_config,
    watch,
)

KINDS = list(SEGMENTORS)
IGNORED = 255


def label_maps(num_classes: int = DENSE_CLASSES) -> Tensor:
    """Two images: bands and a block of each class, with ignored pixels between; rows and columns tell different stories."""
    labels = torch.zeros(2, *DENSE_SIZE, dtype=torch.long)
    labels[0, 20:45] = 1
    labels[0, :, 70:] = num_classes - 1
    labels[1, 40:, :30] = 1
    labels[:, 30:38, 10:50] = IGNORED
    return labels


def build(configs: dict[str, ConfigDict], kind: str, **options: Any) -> Any:
    return build_distiller({**configs[kind], **options})


def batch_for(model: nn.Module, kind: str) -> dict[str, Any]:
    return segmentation_batch(model, label_maps(2 if kind == 'binary' else DENSE_CLASSES))


@pytest.mark.parametrize('kind', KINDS)
def test_the_classifier_is_found(kind: str) -> None:
    model = MODELS.build(segmentor_config(kind))
    site = build_site(None, model)
    assert isinstance(site, SegmentationSite)
    spec = site.student_spec(model)
    part = 'decode_head.1' if kind == 'ocrnet' else 'decode_head'
    assert (spec.part, spec.classifiers, spec.io) == (part, (f'{part}.conv_seg',), 'input')
    # Before the dropout, which would differ between student and teacher.
    assert spec.features == (f'{part}.dropout',)
    assert (spec.num_classes, spec.sigmoid) == ((1, True) if kind == 'binary' else (DENSE_CLASSES, False))
    assert spec.channels == 8 and not spec.is_pyramid


def test_auxiliary_heads_are_left_alone(configs: dict[str, ConfigDict]) -> None:
    distiller = build(configs, 'fcn')
    losses = distillation_losses(distiller(**batch_for(distiller, 'fcn'), mode='loss'))
    assert not any(g is not None for g in gradients(sum(losses.values()), distiller.student.auxiliary_head))


def nearest(labels: Tensor, height: int, width: int) -> np.ndarray:
    """Label maps at another resolution, nearest pixel."""
    rows = np.arange(height) * labels.shape[1] // height
    columns = np.arange(width) * labels.shape[2] // width
    return labels.numpy()[:, rows][:, :, columns]


@pytest.mark.parametrize('kind', KINDS)
def test_the_target_is_the_resized_label_map(configs: dict[str, ConfigDict], kind: str) -> None:
    distiller = build(configs, kind)
    calls, logits = watch(distiller, 'distill'), watch(distiller.student.get_submodule(distiller.student_spec.part), 'cls_seg')
    distiller(**batch_for(distiller, kind), mode='loss')
    student, _, target, _ = calls[-1].args
    height, width = logits[-1].result.shape[2:]
    expected = nearest(label_maps(2 if kind == 'binary' else DENSE_CLASSES), height, width).reshape(2, -1)
    weight = target.weight[:, 0].numpy()
    np.testing.assert_array_equal(weight, expected != IGNORED)
    assert float(target.avg_factor) == weight.sum() and 0 < weight.mean() < 1
    if kind == 'binary':
        np.testing.assert_array_equal(target.probability[:, 0].numpy(), expected == 1)
    else:
        probability = target.probability.numpy()
        np.testing.assert_array_equal(probability.argmax(axis=1)[weight > 0], expected[weight > 0])
        np.testing.assert_array_equal(probability.sum(axis=1), weight)
    torch.testing.assert_close(student.logits, logits[-1].result.flatten(2))


def test_ignored_pixels_move_nothing(configs: dict[str, ConfigDict]) -> None:
    """Whatever the student predicts there."""
    distiller = build(configs, 'fcn')
    calls = watch(distiller, 'distill')
    distiller(**batch_for(distiller, 'fcn'), mode='loss')
    student, teacher, target, head_loss = calls[-1].args
    state = copy.deepcopy(distiller.state_dict())

    def losses() -> dict[str, Tensor]:
        distiller.load_state_dict(state)  # the same noise and the same running statistics
        return distillation_losses(distiller.distill(student, teacher, target, head_loss))

    before = losses()
    moved = student.logits.detach().clone()
    moved += 100 * (target.weight == 0) * torch.randn_like(moved)
    student.logits = moved
    after = losses()
    for name in ('anchor', 'logit', 'lsh'):
        torch.testing.assert_close(after[f'loss_dskd_{name}'], before[f'loss_dskd_{name}'])
    student.logits = moved + 100 * torch.randn_like(moved)
    assert not torch.allclose(losses()['loss_dskd_logit'], before['loss_dskd_logit'])


@pytest.mark.parametrize('kind', KINDS)
def test_a_student_that_equals_its_teacher_has_nothing_to_imitate(configs: dict[str, ConfigDict], kind: str) -> None:
    config = copy.deepcopy(configs[kind])
    config.loss_weights = dict(virtual=1.0)
    config.student = segmentor_config(kind, width=6)
    distiller = build_distiller(config)
    distiller.load_teacher()
    distiller.student.load_state_dict(distiller.teacher.model.state_dict())
    distiller.student.eval()  # the batch norms' averages, and no dropout, as in the teacher
    losses = distillation_losses(distiller(**batch_for(distiller, kind), mode='loss'))
    assert losses['loss_dskd_logit'].item() == pytest.approx(0, abs=1e-5)
    assert losses['loss_dskd_virtual'].item() > 1e-4


@pytest.mark.parametrize(('ours', 'theirs'), [(32, 8), (8, 32), (16, 8)])
def test_other_strides_are_aligned_in_space(tmp_path: Path, ours: int, theirs: int) -> None:
    config = dense_distiller_config('fcn', str(tmp_path), student=dict(stride=ours), teacher=dict(stride=theirs))
    distiller = build_distiller(config)
    distiller.load_teacher()
    calls = watch(distiller, 'distill')
    head = distiller.teacher.model.decode_head
    raw = watch(head, 'cls_seg')
    assert_distils(distiller, batch_for(distiller, 'fcn'))
    student, teacher, target, _ = calls[0].args
    height, width = DENSE_SIZE
    assert student.features[0].shape[2:] == teacher.features[0].shape[2:] == (height // ours, width // ours)
    assert teacher.logits.shape == student.logits.shape == target.probability.shape
    assert raw[0].result.shape[2:] == (height // theirs, width // theirs)
    # Averaged to fewer places, interpolated to more: never a shift or a crop.
    size = (height // ours, width // ours)
    for aligned, tensor in ((teacher.logits, raw[0].result), (teacher.features[0], raw[0].args[0])):
        if ours > theirs:
            factor = ours // theirs
            expected = tensor.unfold(2, factor, factor).unfold(3, factor, factor).mean(dim=(4, 5))
        else:
            expected = F.interpolate(tensor, size, mode='bilinear', align_corners=False)
        torch.testing.assert_close(aligned.reshape(expected.shape), expected)


@pytest.mark.parametrize('pair', [('fcn', 'pspnet'), ('segformer', 'upernet'), ('deeplabv3plus', 'ocrnet')])
def test_any_head_may_teach_another(tmp_path: Path, pair: tuple[str, str]) -> None:
    student, teacher = pair
    distiller = build_distiller(dense_distiller_config(student, str(tmp_path), teacher=dict(kind=teacher)))
    assert_distils(distiller, batch_for(distiller, student))


# kind, how the config is spoilt, what the message says
REFUSED: dict[str, tuple[str, Callable[[ConfigDict], Any], list[str]]] = {
    'classes': (
        'fcn',
        lambda config: config.teacher.config.model.decode_head.update(num_classes=5),
        ['student classifies 3 classes', 'teacher 5', 'decode_head.conv_seg', 'must know the same classes'],
    ),
    'one output for two classes': (
        'binary',
        lambda config: config.teacher.config.model.decode_head.update(out_channels=2, threshold=None),
        ["student's classifier has 1 outputs for 2 classes, the teacher's 2", 'out_channels', 'dskd_mm.NeckSite'],
    ),
    'another task': (
        'fcn',
        lambda config: config.teacher.config.model.pop('decode_head'),
        ["no 'decode_head'", 'another task'],
    ),
    'a layer that is no convolution': (
        'fcn',
        lambda config: config.update(site=dict(classifier='decode_head.dropout')),
        ["student's classification layer 'decode_head.dropout'", 'convolution', 'Dropout2d'],
    ),
    'an unknown layer': (
        'fcn',
        lambda config: config.update(site=dict(teacher_classifier='conv_sgm')),
        ["teacher's decode head", "'conv_sgm'", "'conv_seg'"],
    ),
}


@pytest.mark.parametrize('name', REFUSED)
def test_a_pair_that_does_not_correspond_is_refused_when_it_is_built(configs: dict[str, ConfigDict], name: str) -> None:
    kind, spoil, words = REFUSED[name]
    assert_refused(configs[kind], spoil, words)


@pytest.mark.parametrize(('kind', 'label'), [('fcn', 3), ('fcn', -1), ('binary', 2), ('ocrnet', 254)])
def test_a_label_outside_the_classes(configs: dict[str, ConfigDict], kind: str, label: int) -> None:
    distiller = build(configs, kind)
    batch = batch_for(distiller, kind)
    sample = batch['data_samples'][1]
    sample.set_metainfo(dict(img_path='data/cat.png'))
    sample.gt_sem_seg.data[0, 3, 4] = label
    highest = 1 if kind == 'binary' else 2
    with pytest.raises(ValueError, match=rf'Sample 1 \(data/cat.png\).*\[{label}\].*classes 0 to {highest} and ignores 255'):
        distiller(**batch, mode='loss')
    sample.gt_sem_seg.data[0, 3, 4] = 0
    distiller(**batch, mode='loss')


def test_the_heads_own_ignore_index(tmp_path: Path) -> None:
    config = dense_distiller_config('fcn', str(tmp_path))
    for head in (config.student.decode_head, config.student.auxiliary_head):
        head.ignore_index = 7
    distiller = build_distiller(config)
    labels = label_maps()
    labels[labels == IGNORED] = 7
    calls = watch(distiller, 'distill')
    distiller(**segmentation_batch(distiller, labels), mode='loss')
    expected = nearest(labels, 8, 12).reshape(2, -1) != 7
    np.testing.assert_array_equal(calls[0].args[2].weight[:, 0].numpy(), expected)


def test_features_that_are_not_finite_are_named(configs: dict[str, ConfigDict]) -> None:
    distiller = build(configs, 'fcn')
    with torch.no_grad():
        distiller.student.decode_head.conv_cat.bn.bias[0] = torch.nan
    assert first_not_finite(distiller, batch_for(distiller, 'fcn')) == "input of 'decode_head.dropout' in the student"


@pytest.mark.parametrize('kind', ['fcn', 'binary', 'ocrnet'])
def test_without_a_teachers_opinion_no_backbone_is_built(configs: dict[str, ConfigDict], kind: str, tmp_path: Path) -> None:
    config = copy.deepcopy(configs[kind])
    state = torch.load(config.teacher.checkpoint)['state_dict']
    torch.save({key: value for key, value in state.items() if 'decode_head' in key}, tmp_path / 'head.pth')
    config.teacher.checkpoint = str(tmp_path / 'head.pth')
    config.teacher.config.model.backbone = dict(type='NoBackboneOfThisName')
    distiller = build_distiller({**config, 'target': 'label', 'loss_weights': dict(logit=0)})
    assert_distils(distiller, batch_for(distiller, kind))
    assert distiller.teacher.is_loaded and distiller.teacher.model is None


def test_as_many_pixels_are_hashed_as_wanted_and_of_every_class(configs: dict[str, ConfigDict]) -> None:
    labels = torch.zeros(2, *DENSE_SIZE, dtype=torch.long)
    labels[0, :8, :8] = 1  # one of 96 places
    labels[1, 32:] = IGNORED
    distiller = build(configs, 'fcn', site=dict(vectors_per_image=10))
    hashed, targets = watch(distiller.lsh, 'forward'), watch(distiller, 'distill')
    for _ in range(5):
        distiller(**segmentation_batch(distiller, labels), mode='loss')
        ours, theirs, weight = hashed[-1].args
        assert ours.shape == theirs.shape == (20, 12) and bool(weight.all())
    classes = targets[-1].args[2].probability.argmax(dim=1)
    assert int((classes == 1).sum()) == 1


def test_logits_are_compared_as_maps_too(configs: dict[str, ConfigDict]) -> None:
    """Each channel's softmax over its locations, by hand (CWD); it follows the weight of the logit term."""
    distiller = build(configs, 'fcn', loss_weights=dict(logit=0.5))
    seen = watch(distiller, 'distill')
    torch.manual_seed(0)
    losses = distiller(**batch_for(distiller, 'fcn'), mode='loss')
    ours, theirs = (observed.logits.flatten(0, 1) for observed in seen[0].args[:2])
    expected = sum(
        float((torch.softmax(t / 4, 0) * (torch.log_softmax(t / 4, 0) - torch.log_softmax(s / 4, 0))).sum())
        for s, t in zip(ours, theirs, strict=True)
    )
    assert float(losses['loss_dskd_channel']) == pytest.approx(0.5 * 3 * 4**2 * expected / len(ours), rel=1e-4)
    for weights, weight in ((dict(), 3.0), (dict(logit=0), 0.0), (dict(channel=0), 0.0), (dict(logit=0, channel=2.0), 2.0)):
        assert build(configs, 'fcn', loss_weights=weights).options.loss_weights['channel'] == weight


CROSS_ENTROPY, DICE = dict(type='CrossEntropyLoss', loss_weight=1.0), dict(type='DiceLoss', loss_weight=3.0)
BINARY = dict(type='CrossEntropyLoss', use_sigmoid=True, loss_weight=1.0)


@pytest.mark.parametrize('losses', [[CROSS_ENTROPY, DICE], [DICE, CROSS_ENTROPY], DICE, BINARY])
def test_classes_are_exclusive_as_mmseg_predicts_whatever_the_losses(losses: list) -> None:
    config = segmentor_config('fcn')
    config.decode_head.loss_decode = losses
    model = MODELS.build(config)
    assert not build_site(None, model).student_spec(model).sigmoid


@pytest.mark.parametrize('losses', [[BINARY, DICE], [DICE, BINARY]])
def test_a_single_output_is_a_sigmoid_whatever_the_losses(losses: list) -> None:
    config = segmentor_config('binary')
    config.decode_head.loss_decode = losses
    model = MODELS.build(config)
    assert build_site(None, model).student_spec(model).sigmoid
