"""CrossKD: its losses against the authors' way through the teacher's head, and training of dense detectors."""

from typing import Any

import pytest

pytest.importorskip('mmdet')

import torch
from mmengine.config import ConfigDict
from rival_checks import assert_behaves, assert_survives_nothing, rival_batch, rival_config
from torch import Tensor
from torch.nn import functional as F

from dskd_mm.features.pyramid import fold_priors
from dskd_mm.testing import save_random_model, train
from dskd_mm.testing.identity import identity_step, make_identical
from support import assert_refused, build_distiller, dense_distiller_config, detection_batch, detector_config, random_boxes

METHOD = 'CrossKDDistiller'
PREDICTORS = dict(
    retinanet=('retina_cls', 'retina_reg'),
    retinanet_softmax=('retina_cls', 'retina_reg'),
    fcos=('conv_cls', 'conv_reg'),
    atss=('atss_cls', 'atss_reg'),
    gfl=('gfl_cls', 'gfl_reg'),
)
KINDS = list(PREDICTORS)


def deep_config(kind: str, directory: Any, depths: tuple[int, int] = (3, 3), widths: tuple[int, int] = (4, 6), **switches: Any):
    """A distiller whose heads have towers of several convolutions."""
    config = rival_config(METHOD, kind, directory, **switches)
    for model, depth, width in zip((config.student, config.teacher.config.model), depths, widths, strict=True):
        model.update(detector_config(kind, width))
        model.bbox_head.stacked_convs = depth
    save_random_model(config.teacher.config.model, config.teacher.checkpoint, r'cls|reg')
    return config


def through(head: Any, kind: str, tower: str, maps: list[Tensor], index: int, like: list[Tensor], align: Any) -> list[Tensor]:
    """The predictions of one branch as the authors make them: the feature held before its activation, aligned, sent on."""
    predict, found = getattr(head, PREDICTORS[kind][tower == 'reg_convs']), []
    for level, (ours, theirs) in enumerate(zip(maps, like, strict=True)):
        ours = align(ours)
        # Theirs has 1e-6 beside the deviation; ours 1e-8 beside the variance.
        (mean, variance), (center, spread) = (
            (x.mean(dim=(0, 2, 3), keepdim=True), x.var(dim=(0, 2, 3), keepdim=True, unbiased=False)) for x in (ours, theirs)
        )
        x = F.relu((ours - mean) / (variance + 1e-8).sqrt() * spread.sqrt() + center)
        for block in getattr(head, tower)[index:]:
            x = block(x)
        x = predict(x)
        if tower == 'reg_convs' and kind in ('fcos', 'atss', 'gfl'):
            x = head.scales[level](x)
        if tower == 'reg_convs' and kind == 'fcos':
            x = x.clamp(min=0) * head.strides[level] if head.norm_on_bbox else x.exp()
        found.append(x)
    return found


def held(head: Any, tower: str, maps: list[Tensor], index: int) -> list[Tensor]:
    """The feature after so many convolutions, the last one without its activation."""
    found = []
    for x in maps:
        for number, block in enumerate(getattr(head, tower)[:index]):
            x = block(x, activate=number + 1 < index)
        found.append(x)
    return found


def packed(levels: list[Tensor], priors: int) -> Tensor:
    return torch.cat([fold_priors(level, priors).flatten(2) for level in levels], dim=2)


@pytest.mark.parametrize(('kind', 'following'), [*((kind, None) for kind in KINDS), ('fcos', 0), ('gfl', 2)])
def test_the_losses_are_the_authors(tmp_path, kind, following):
    weights, temperature = dict(cls=0.5, box=2.0), 2.0
    options = {} if following is None else dict(teacher_layers=following)
    box = dict(temperature=temperature, loss_weight=3.0)
    config = deep_config(kind, tmp_path, loss_weights=weights, box=box, **options)
    config.teacher.config.model.bbox_head.update(dict(norm_on_bbox=True) if kind == 'fcos' and following == 0 else {})
    config.student.bbox_head.update(dict(norm_on_bbox=True) if kind == 'fcos' and following == 0 else {})
    distiller = build_distiller(config)
    distiller.load_teacher()
    distiller.student.eval()  # the same features in both passes
    batch = rival_batch(distiller, kind)
    student, teacher, index = distiller.student, distiller.teacher.model, 3 - (1 if following is None else following)
    # FCOS in units of the stride while it trains.
    student.bbox_head.training = True
    run = distiller.run_models(batch['inputs'], batch['data_samples'])
    found = distiller.distill(run.student, run.teacher, run.target, run.head_loss)

    ours, theirs = (model.extract_feat(batch['inputs']) for model in (student, teacher))
    crossed, priors = {}, run.student.num_priors
    for name, tower in (('cls', 'cls_convs'), ('box', 'reg_convs')):
        own, like = held(student.bbox_head, tower, ours, index), held(teacher.bbox_head, tower, theirs, index)
        assert own[0].shape[1] == 8 and like[0].shape[1] == 12
        crossed[name] = packed(through(teacher.bbox_head, kind, tower, own, index, like, distiller.align[name]), priors)
    scores, boxes = (packed(levels, priors) for levels in teacher.bbox_head(theirs)[:2])
    counts = run.target.weight[:, 0] > 0
    positives = run.target.avg_factor.clamp(min=1)
    sure = scores.softmax(dim=1)[:, :-1] if kind == 'retinanet_softmax' else scores.sigmoid()
    if kind == 'retinanet_softmax':
        each = F.kl_div(crossed['cls'].log_softmax(dim=1), scores.softmax(dim=1), reduction='none').sum(dim=1)
    else:
        gap = (crossed['cls'].sigmoid() - sure).abs()
        each = (F.binary_cross_entropy_with_logits(crossed['cls'], sure, reduction='none') * gap).sum(dim=1)
    expected = weights['cls'] * (each * counts).sum() / positives
    torch.testing.assert_close(found['loss_crosskd_cls'], expected, rtol=1e-4, atol=1e-5)

    sure = sure.amax(dim=1) * counts
    if kind == 'gfl':
        logs = [(x.unflatten(1, (4, -1)) / temperature).log_softmax(dim=2) for x in (crossed['box'], boxes)]
        each = (logs[1].exp() * (logs[1] - logs[0])).sum(dim=2).mean(dim=1) / logs[0].shape[2] * temperature**2
        expected = (each * sure).sum() / sure.sum()
    elif kind == 'fcos':
        size = torch.maximum(boxes.abs().sum(dim=1), crossed['box'].detach().abs().sum(dim=1) / 10) / 2
        each = (crossed['box'] - boxes).abs().sum(dim=1) / size.clamp(min=torch.finfo(size.dtype).tiny)
        expected = (each * sure).sum() / positives
    else:
        expected = ((crossed['box'] - boxes).abs().sum(dim=1) * sure).sum() / positives
    torch.testing.assert_close(found['loss_crosskd_box'], 6.0 * expected, rtol=1e-4, atol=1e-5)
    assert set(found) == {'loss_crosskd_cls', 'loss_crosskd_box'}


@pytest.mark.parametrize('kind', KINDS)
def test_a_student_that_is_its_teacher_has_nothing_to_learn(tmp_path, kind):
    distiller = build_distiller(deep_config(kind, tmp_path, widths=(6, 6)))
    make_identical(distiller)
    gaps, _, losses = identity_step(distiller, rival_batch(distiller, kind))
    assert max(gaps.values()) == 0
    assert losses['loss_crosskd_cls'].item() < 1e-5 and losses['loss_crosskd_box'].item() < 1e-4
    with torch.no_grad():
        distiller.student.bbox_head.reg_convs[0].conv.weight[0].mul_(-1)
        distiller.student.bbox_head.cls_convs[0].conv.weight[0].mul_(-1)
    losses = distiller(**rival_batch(distiller, kind), mode='loss')
    assert losses['loss_crosskd_cls'].item() > 1e-3 and losses['loss_crosskd_box'].item() > 1e-3


@pytest.mark.parametrize('kind', KINDS)
def test_it_trains_and_resumes(tmp_path, kind):
    distiller = assert_behaves(deep_config(kind, tmp_path), kind, 'crosskd', {'_cls', '_box'})
    teacher = distiller.teacher.model
    assert not any(module._forward_hooks for module in teacher.modules())
    assert not any(module.training for module in teacher.modules())
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_each_branch_trains_what_comes_before(tmp_path):
    """The cross-head losses train the student's towers up to where its feature leaves, not its own last layers."""
    distiller = build_distiller(deep_config('retinanet', tmp_path))
    losses = distiller(**rival_batch(distiller, 'retinanet'), mode='loss')
    losses['loss_crosskd_cls'].backward()
    head = distiller.student.bbox_head
    reached = {name for name, parameter in head.named_parameters() if parameter.grad is not None and parameter.grad.any()}
    assert {name.rpartition('.')[0] for name in reached} == {'cls_convs.0.conv', 'cls_convs.1.conv'}


@pytest.mark.parametrize('kind', ['retinanet', 'gfl'])
def test_without_objects(tmp_path, kind):
    assert_survives_nothing(rival_config(METHOD, kind, tmp_path), kind, 'crosskd')


def test_levels_that_do_not_vary_have_a_finite_gradient(tmp_path):
    """A single image has levels of one location."""
    distiller = build_distiller(deep_config('retinanet', tmp_path))
    batch = detection_batch(distiller, [random_boxes(3)])
    found = train(distiller, batch, steps=2)
    assert all(bool(torch.isfinite(value)) for value in found[-1].values())
    assert all(bool(parameter.isfinite().all()) for parameter in distiller.parameters())


def test_towers_of_other_depths_and_no_boxes(tmp_path):
    """Convolutions are counted from the end. A head of one has none to follow."""
    distiller = build_distiller(deep_config('fcos', tmp_path, depths=(1, 3), loss_weights=dict(box=0)))
    paths = [spec.layers['crosskd_cls'].path for spec in (distiller.student_spec, distiller.teacher_spec)]
    assert paths == ['bbox_head.cls_convs.0.gn', 'bbox_head.cls_convs.1.gn']
    losses = distiller(**rival_batch(distiller, 'fcos'), mode='loss')
    assert 'loss_crosskd_box' not in losses and float(losses['loss_crosskd_cls']) > 0
    assert list(distiller.align) == ['cls']


def test_a_teacher_of_larger_images_tells_of_classes_alone(tmp_path):
    config = deep_config('retinanet', tmp_path)
    config.teacher.input_size = 2.0
    distiller = build_distiller(config)
    losses = distiller(**rival_batch(distiller, 'retinanet'), mode='loss')
    assert {name for name in losses if 'crosskd' in name} == {'loss_crosskd_cls'}
    assert bool(losses['loss_crosskd_cls'].isfinite())


REFUSED = {
    'rtmdet': (dict(), ["'cls_convs' of the student's RTMDetSepBNHead", '--method kd']),
    'yolof': (dict(), ["'cls_convs' of the student's YOLOFHead", '--method kd']),
    'detr': (dict(), ['dense detectors', 'NeckSite', 'KD compares']),
    'faster_rcnn': (dict(), ['dense detectors', 'TwoStageDetectionSite', 'KD compares']),
    'retinanet': (dict(teacher_layers=1), ["must be 0 to 0, for 'cls_convs' of the student's RetinaHead has 1", 'got 1']),
    'atss': (dict(loss_weights=dict(centerness=1.0)), ["'box', 'cls'", "'centerness'"]),
}


@pytest.mark.parametrize('kind', REFUSED)
def test_others_are_refused_and_told_what_works(tmp_path, kind):
    switches, words = REFUSED[kind]
    config = dense_distiller_config(kind, str(tmp_path))
    config.type = f'dskd_mm.{METHOD}'
    assert_refused(config, lambda config: config.update(switches), words)
    if '--method kd' in words:
        works: Any = ConfigDict(config, type='dskd_mm.ConfigurableDistiller')
        distiller = build_distiller({**works, 'distill_losses': dict(kd=dict(type='dskd_mm.KDLoss'))})
        assert float(distiller(**rival_batch(distiller, 'retinanet'), mode='loss')['loss_kd'].detach()) > 0
