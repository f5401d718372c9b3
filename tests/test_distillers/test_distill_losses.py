"""Losses by config: at every site, beside any method, at any layer; and what is refused."""

import copy
from typing import Any

import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS
from rival_checks import assert_behaves, assert_survives_nothing, needs_mmdet, needs_mmseg, rival_batch, rival_config
from torch import Tensor
from torch.nn import functional as F

from dskd_mm.distillers.base import check_names
from dskd_mm.losses import KDLoss
from dskd_mm.structures import ModelOutputs
from dskd_mm.testing import gradients, random_batch
from support import build_distiller

KD, DKD, DIST = dict(type='dskd_mm.KDLoss'), dict(type='dskd_mm.DKDLoss'), dict(type='dskd_mm.DISTLoss')
FITNET, AT, PKD = dict(type='dskd_mm.FitNetLoss'), dict(type='dskd_mm.ATLoss'), dict(type='dskd_mm.PKDLoss')
CWD, MGD = dict(type='dskd_mm.CWDLoss'), dict(type='dskd_mm.MGDLoss', loss_weight=1e-3)
CHANNELS_MASKED = dict(**MGD, mask='channel')
NECK = dict(type='dskd_mm.NeckSite')
"""Levels of a neck by the site; LEVELS are the same by a layer."""
LEVELS = dict(
    levels=dict(student=dict(path='neck', channels=8, index='all'), teacher=dict(path='neck', channels=12, index='all'))
)
STAGES = dict(
    middle=dict(student=dict(path='backbone.layer2', channels=8), teacher=dict(path='backbone.layer2', channels=12)),
    early=dict(student=dict(path='backbone.layer1', channels=4), teacher=dict(path='backbone.layer1', channels=6)),
)


def case(kind: str, losses: dict[str, dict], method: str = 'ConfigurableDistiller', **switches: Any) -> Any:
    """One setting; its losses are all logged under names that begin with 'x'."""
    marks = []
    if kind in ('retinanet', 'retinanet_softmax', 'rtmdet', 'faster_rcnn', 'detr'):
        marks.append(needs_mmdet)
    if kind in ('fcn', 'binary'):
        marks.append(needs_mmseg)
    name = '-'.join([kind, *losses, *switches.get('site', {}).values(), *(['dskd'] if method.startswith('DSKD') else [])])
    named = {f'x{key}': loss for key, loss in losses.items()}
    return pytest.param(kind, method, dict(distill_losses=named, **switches), id=name, marks=marks)


def at(layer: str, *losses: dict) -> dict[str, dict]:
    """Losses that read one layer."""
    return {f'{loss["type"].removeprefix("dskd_mm.").lower()}_{layer}': dict(**loss, on=layer) for loss in losses}


CASES = [
    case('gap', dict(kd=KD, dkd=DKD, dist=DIST)),
    case('gap', dict(fitnet=FITNET, at=AT, cwd=CWD, pkd=PKD, mgd=MGD, channels=CHANNELS_MASKED)),
    case('gap', {**at('middle', FITNET, AT, CWD), **at('early', PKD, MGD), 'kd': KD}, layers=STAGES),
    case('gap', dict(kd=KD, l2=dict(**FITNET, on='logits', align=dict(kind='identity')))),
    case('vit', dict(kd=KD, dkd=DKD, dist=DIST, fitnet=FITNET, pkd=PKD, mgd=CHANNELS_MASKED)),
    case('multi_label', dict(kd=KD, dist=DIST, fitnet=FITNET)),
    case('fcn', dict(kd=KD, dkd=DKD, dist=DIST, fitnet=FITNET, at=AT, mgd=MGD, **at('logits', CWD))),
    case('binary', dict(kd=KD, fitnet=FITNET, **at('logits', CWD))),
    case('retinanet', {**dict(kd=KD, dist=DIST, fitnet=FITNET, cwd=CWD, mgd=MGD), **at('logits', CWD)}),
    case('retinanet', at('levels', FITNET, AT, CWD, PKD, MGD), layers=LEVELS),
    case('retinanet', dict(fitnet=FITNET, at=AT, cwd=CWD, pkd=PKD, mgd=MGD), site=NECK),
    case('retinanet_softmax', dict(kd=KD, dkd=DKD, dist=DIST)),
    case('faster_rcnn', dict(kd=KD, dkd=DKD, dist=DIST, fitnet=FITNET, pkd=PKD, mgd=CHANNELS_MASKED)),
    case('detr', dict(pkd=PKD)),
]


@pytest.mark.parametrize(('kind', 'method', 'switches'), CASES)
def test_losses_train_a_student_at_every_site(tmp_path: Any, kind: str, method: str, switches: dict) -> None:
    config = rival_config(method, kind, tmp_path, **copy.deepcopy(switches))
    distiller = assert_behaves(config, kind, 'x', {key.removeprefix('x') for key in switches['distill_losses']})
    own = {key for key in distiller.state_dict() if not key.startswith('student.')}
    assert {key.split('.')[0] for key in own} <= {'distill_losses', 'noise_seed', 'iteration', 'foreground'}


BESIDE = [
    case('gap', dict(kd=KD, dist=DIST), 'DSKDDistiller'),
    case('gap', dict(dist=DIST, mgd=MGD), 'DSKDDistiller', target='label', loss_weights=dict(logit=0.0)),
    case('fcn', dict(dist=DIST, **at('logits', CWD)), 'DSKDDistiller'),
    case('retinanet', dict(dist=DIST, **at('levels', PKD)), 'DSKDDistiller', layers=LEVELS),
    case('retinanet', dict(pkd=PKD), 'DSKDDistiller', site=NECK),
]


@pytest.mark.parametrize(('kind', 'method', 'switches'), BESIDE)
def test_losses_beside_dskd_leave_its_own_as_they_are(tmp_path: Any, kind: str, method: str, switches: dict) -> None:
    config = rival_config(method, kind, tmp_path, **copy.deepcopy(switches))
    names = {key.removeprefix('x') for key in switches['distill_losses']}
    both = assert_behaves(config, kind, 'x', names)
    plain = {key: value for key, value in switches.items() if key not in ('distill_losses', 'layers')}
    without = rival_config(method, kind, tmp_path, **plain)
    found = []
    for variant in (config, without):
        distiller = build_distiller(variant)
        distiller.load_state_dict(both.state_dict(), strict=False)
        distiller.load_teacher()  # which draws weights
        torch.manual_seed(3)
        losses = distiller(**rival_batch(distiller, kind), mode='loss')
        found.append({key: value for key, value in losses.items() if key.startswith('loss_dskd')})
    assert found[1] and set(found[0]) == set(found[1])
    for key, value in found[1].items():
        torch.testing.assert_close(found[0][key], value, msg=key)


@pytest.mark.parametrize(
    ('kind', 'method', 'switches'),
    [param for param in CASES if str(param.id).startswith(('fcn-kd', 'retinanet-kd', 'faster_rcnn-kd'))],
)
def test_without_annotations_losses_are_finite(tmp_path: Any, kind: str, method: str, switches: dict) -> None:
    config = rival_config(method, kind, tmp_path, **copy.deepcopy(switches))
    losses = assert_survives_nothing(config, kind, 'x')
    if kind == 'fcn':
        assert [key for key in ('loss_xkd', 'loss_xdkd', 'loss_xdist') if losses[key] != 0] == []


# ---------------------------------------------------------------------------------------------- what they see


def classifier(tmp_path: Any, **switches: Any) -> tuple[Any, dict]:
    """A distiller of a small classifier and a batch."""
    distiller = build_distiller(rival_config('ConfigurableDistiller', 'gap', tmp_path, **switches))
    return distiller, rival_batch(distiller, 'gap')


@pytest.mark.parametrize(
    ('kind', 'layers'), [('gap', STAGES), pytest.param('retinanet', LEVELS, marks=needs_mmdet)], ids=['gap', 'retinanet']
)
def test_channels_of_layers_need_not_be_given(tmp_path: Any, kind: str, layers: dict) -> None:
    paths = copy.deepcopy(layers)
    for side in (side for pair in paths.values() for side in pair.values()):
        side.pop('channels')
    losses = {name: dict(**FITNET, on=name) for name in layers}
    given, found = (
        build_distiller(rival_config('ConfigurableDistiller', kind, tmp_path, distill_losses=losses, layers=config))
        for config in (layers, paths)
    )
    assert found.student_spec.layers == given.student_spec.layers
    assert found.teacher_spec.layers == given.teacher_spec.layers
    shapes = [{name: value.shape for name, value in model.state_dict().items()} for model in (given, found)]
    assert shapes[0] == shapes[1]
    assert found.teacher.model is None


def test_what_is_logged_is_the_distance_of_the_two_models(tmp_path: Any) -> None:
    losses = dict(kd=dict(**KD, temperature=2.0, loss_weight=0.5), middle=dict(**AT, on='middle'))
    distiller, batch = classifier(tmp_path, distill_losses=losses, layers=STAGES)
    logged = distiller(**batch, mode='loss')
    seen = []
    for model in (distiller.student, distiller.teacher.model):
        middle = model.backbone.layer2(model.backbone.layer1(F.relu(model.backbone.bn1(model.backbone.conv1(batch['inputs'])))))
        logits = model.head.fc(model.backbone.layer3(middle).mean(dim=(2, 3)))
        seen.append((logits, F.normalize(middle.square().mean(dim=1).flatten(1))))
    (ours, our_map), (theirs, their_map) = seen
    kd = F.kl_div((ours / 2).log_softmax(1), (theirs / 2).softmax(1), reduction='batchmean') * 4 * 0.5
    torch.testing.assert_close(logged['loss_kd'], kd, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(logged['loss_middle'], 1000 * F.mse_loss(our_map, their_map), rtol=1e-4, atol=1e-6)
    assert set(logged) == {'loss', 'loss_kd', 'loss_middle'}


def test_losses_warm_up_linearly_and_continue_where_they_were(tmp_path: Any) -> None:
    distiller, batch = classifier(tmp_path, distill_losses=dict(kd=KD), warmup=4)
    logged = [distiller(**batch, mode='loss') for _ in range(3)]
    resumed, _ = classifier(tmp_path, distill_losses=dict(kd=KD), warmup=4)
    resumed.load_state_dict(distiller.state_dict())
    logged += [resumed(**batch, mode='loss') for _ in range(3)]
    for i, losses in enumerate(logged):
        torch.testing.assert_close(losses['loss_kd'], min((i + 1) / 4, 1) * logged[-1]['loss_kd'])
        torch.testing.assert_close(losses['loss'], logged[0]['loss'])


def test_a_layer_is_resized_to_the_student(tmp_path: Any) -> None:
    """Stages of other resolutions: the teacher's map follows."""
    layers = dict(odd=dict(student=dict(path='backbone.layer3', channels=16), teacher=dict(path='backbone.layer1', channels=6)))
    distiller, batch = classifier(tmp_path, distill_losses=dict(pkd=dict(**PKD, on='odd')), layers=layers)
    assert bool(distiller(**batch, mode='loss')['loss_pkd'].isfinite())


def test_the_mask_of_mgd_follows_from_seed_and_iteration(tmp_path: Any) -> None:
    distiller, batch = classifier(tmp_path, distill_losses=dict(a=MGD, b=MGD))
    distiller.load_teacher()
    again = copy.deepcopy(distiller)
    again.distill_losses['b'].load_state_dict(again.distill_losses['a'].state_dict())
    torch.manual_seed(1)
    first = distiller(**batch, mode='loss')
    torch.manual_seed(2)
    second = again(**batch, mode='loss')
    assert torch.equal(first['loss_a'], second['loss_a'])
    assert not torch.equal(second['loss_a'], second['loss_b']), 'two losses hide the same locations'


def test_noise_of_losses_is_not_that_of_the_method(tmp_path: Any) -> None:
    distiller, _ = classifier(tmp_path, distill_losses=dict(kd=KD))
    device = torch.device('cpu')
    draws = [torch.rand(4, generator=distiller.noise_generator(device, *key)) for key in ((), (1,), (1,), (2,))]
    assert torch.equal(draws[1], draws[2])
    assert not any(torch.equal(draws[1], draws[i]) for i in (0, 3))


@pytest.mark.parametrize('anchors', [1, 3])
def test_logits_are_maps_of_their_levels(anchors: int) -> None:
    raw = [torch.randn(2, anchors * 5, *size) for size in ((4, 6), (2, 3))]
    seen = ModelOutputs([torch.zeros(2, 7, 4, 6), torch.zeros(2, 7, 2, 3)], raw, num_priors=anchors)
    maps = seen.maps('logits')
    assert torch.equal(seen.logits, torch.cat([level.flatten(2) for level in maps], dim=2))
    for level, found in zip(raw, maps, strict=True):
        height, width = level.shape[2:]
        assert found.shape == (2, 5, height, width * anchors)
        for a in range(anchors):
            assert torch.equal(found[:, :, :, a::anchors], level[:, a * 5 : (a + 1) * 5])


def test_logits_of_images_are_maps_of_one_location() -> None:
    logits = torch.randn(2, 5)
    (found,) = ModelOutputs([torch.zeros(2, 7, 4, 6)], [logits]).maps('logits')
    assert torch.equal(found[:, :, 0, 0], logits) and found.shape == (2, 5, 1, 1)


def test_the_teacher_runs_only_if_a_loss_reads_it(tmp_path: Any) -> None:
    label_only = dict(target='label', loss_weights=dict(logit=0.0, virtual=0.0))
    config = rival_config('DSKDDistiller', 'gap', tmp_path, **label_only)
    for losses, runs in ((None, False), ({}, False), (dict(kd=KD), True)):
        distiller = build_distiller(ConfigDict(**config, distill_losses=losses))
        assert distiller.uses_teacher_forward == runs
        distiller(**rival_batch(distiller, 'gap'), mode='loss')
        assert (distiller.teacher.model is not None) == runs


def test_a_students_checkpoint_loads_and_losses_keep_their_weights(tmp_path: Any) -> None:
    distiller, _ = classifier(tmp_path, distill_losses=dict(fitnet=dict(**FITNET, align=dict(norm='GN'))))
    own = {f'distill_losses.fitnet.align.layers.{key}' for key in ('0.weight', '1.weight', '1.bias')}
    assert {key for key in distiller.state_dict() if not key.startswith('student.')} == own | {'noise_seed', 'iteration'}
    plain = MODELS.build(rival_config('ConfigurableDistiller', 'gap', tmp_path, distill_losses=dict(kd=KD)).student)
    missing = distiller.load_state_dict(plain.state_dict(), strict=False)
    assert set(missing.missing_keys) == own | {'noise_seed', 'iteration'} and not missing.unexpected_keys


def test_no_gradient_reaches_the_teacher(tmp_path: Any) -> None:
    distiller, batch = classifier(tmp_path, distill_losses=dict(kd=KD, fitnet=FITNET))
    losses = distiller(**batch, mode='loss')
    total: Tensor = losses['loss_kd'] + losses['loss_fitnet']
    assert not any(p.requires_grad for p in distiller.teacher.model.parameters())
    assert all(gradient is not None for gradient in gradients(total, distiller.student))


# ------------------------------------------------------------------------------------------- what is refused


def pair(path: str = 'backbone.layer2', channels: tuple[int, int] = (8, 12)) -> dict:
    return {owner: dict(path=path, channels=width) for owner, width in zip(('student', 'teacher'), channels, strict=True)}


@pytest.mark.parametrize(
    ('kind', 'switches', 'error', 'words'),
    [
        ('gap', dict(distill_losses={}), ValueError, ['at least one loss', 'KDLoss', '{}']),
        ('gap', dict(distill_losses=dict(a=KD), warmup=-1), ValueError, ['warmup of ConfigurableDistiller', '-1']),
        ('gap', dict(distill_losses=None), ValueError, ['at least one loss', 'KDLoss', 'None']),
        ('gap', dict(distill_losses=dict(a=dict(type='dskd_mm.LSHDistillLoss'))), TypeError, ['distill_losses.a', 'LSH']),
        ('gap', dict(distill_losses=dict(a=dict(temperature=4))), TypeError, ['distill_losses.a', 'KDLoss', 'temperature']),
        ('gap', dict(distill_losses=dict(a=dict(type='dskd_mm.NoLoss'))), (TypeError, KeyError), ['NoLoss']),
        (
            'gap',
            dict(distill_losses=dict(a=dict(**FITNET, on='neck')), layers=dict(middle=pair())),
            ValueError,
            ['distill_losses.a (FitNetLoss)', "'neck'", "'feature', 'logits', 'middle'", 'layers'],
        ),
        ('gap', dict(distill_losses=dict(a=KD), layers=dict(logits=pair())), ValueError, ["'logits'", 'another']),
        ('gap', dict(distill_losses=dict(a=KD), layers=dict(feature=pair())), ValueError, ["'feature'", 'another']),
        ('gap', dict(distill_losses=dict(a=KD), layers=dict(m=dict(path='x', channels=4))), ValueError, ['layers.m', "'path'"]),
        ('gap', dict(distill_losses=dict(a=dict(**CWD, on='logits'))), ValueError, ['CWDLoss', "'logits'", 'vector']),
        (
            'gap',
            dict(distill_losses=dict(a=dict(**CWD, on='logits')), site=dict(feature=dict(path='backbone', channels=16))),
            ValueError,
            ['CWDLoss', "'logits'", 'vector'],
        ),
        ('vit', dict(distill_losses=dict(a=AT)), ValueError, ['ATLoss', "'feature'", 'vector', 'PKDLoss']),
        ('vit', dict(distill_losses=dict(a=MGD)), ValueError, ['MGDLoss', "'feature'", 'vector']),
        ('multi_label', dict(distill_losses=dict(a=DKD)), ValueError, ['DKDLoss', 'independent', 'KDLoss']),
        pytest.param(
            'retinanet', dict(distill_losses=dict(a=DKD)), ValueError, ['DKDLoss', '3 independent'], marks=needs_mmdet
        ),
        pytest.param('binary', dict(distill_losses=dict(a=DIST)), ValueError, ['DISTLoss', 'but got 1'], marks=needs_mmseg),
        pytest.param(
            'retinanet',
            dict(distill_losses=dict(a=KD), site=NECK),
            ValueError,
            ['distill_losses.a (KDLoss)', 'no linear classifier'],
            marks=needs_mmdet,
        ),
        pytest.param(
            'retinanet',
            dict(distill_losses=dict(a=dict(**CWD, on='logits')), site=NECK),
            ValueError,
            ['distill_losses.a (CWDLoss)', "'logits'", "only 'feature'"],
            marks=needs_mmdet,
        ),
    ],
)
def test_refused_when_built(tmp_path: Any, kind: str, switches: dict, error: Any, words: list[str]) -> None:
    config = rival_config('ConfigurableDistiller', kind, tmp_path, **copy.deepcopy(switches))
    with pytest.raises(error) as caught:
        MODELS.build(config)
    assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)


def test_losses_of_this_package_need_no_prefix(tmp_path: Any) -> None:
    config = rival_config('DSKDDistiller', 'gap', tmp_path, distill_losses=dict(kd=dict(type='KDLoss', temperature=2.0)))
    assert isinstance(MODELS.build(config).distill_losses['kd'], KDLoss)


@pytest.mark.parametrize(
    ('method', 'switches', 'norms'),
    [
        ('DSKDDistiller', {}, ['align', 'denoiser']),
        ('DSKDDistiller', dict(autoencoder=dict(latent_channels=8)), ['align', 'denoiser', 'autoencoder']),
        ('DiffKDDistiller', {}, [f'pairs.{name}{part}' for name in ('feature', 'logits') for part in ('', '.output')]),
        ('ConfigurableDistiller', dict(distill_losses=dict(a=FITNET)), ['distill_losses.a.align']),
    ],
)
def test_one_vector_alone_is_too_few_for_batch_norms(tmp_path: Any, method: str, switches: dict, norms: list[str]) -> None:
    """And the mend that the message names is one."""
    cfg = Config(dict(model=rival_config(method, 'vit', tmp_path, **copy.deepcopy(switches))))
    images, samples = random_batch(1)
    with pytest.raises(ValueError, match=f'batch norm of {method} expects several vectors.*norm=GN'):
        build_distiller(copy.deepcopy(cfg.model))(images, samples, mode='loss')
    cfg.merge_from_dict({f'model.{module}.norm': 'GN' for module in norms})
    losses = build_distiller(cfg.model)(images, samples, mode='loss')
    assert all(torch.as_tensor(value).isfinite().all() for value in losses.values())


@pytest.mark.parametrize(
    ('switches', 'words'),
    [
        (dict(layers=dict(m=pair('backbone.layer9'))), ["no module 'backbone.layer9'", 'backbone.layer3']),
        (dict(layers=dict(m=pair(channels=(8, 13)))), ["'backbone.layer2' in the teacher", '13', '12', 'channels']),
        (dict(layers=dict(m=pair('neck', (16, 24))), distill_losses=dict(a=dict(**AT, on='m'))), ["'m'", 'vector']),
    ],
)
def test_refused_in_the_first_step(tmp_path: Any, switches: dict, words: list[str]) -> None:
    """Paths and shapes of layers are known by then."""
    distiller, batch = classifier(tmp_path, **{'distill_losses': dict(a=dict(**FITNET, on='m')), **copy.deepcopy(switches)})
    with pytest.raises(ValueError) as caught:
        distiller(**batch, mode='loss')
    assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)


@needs_mmdet
def test_a_name_that_the_student_uses_is_refused(tmp_path: Any) -> None:
    distiller = build_distiller(rival_config('ConfigurableDistiller', 'retinanet', tmp_path, distill_losses=dict(cls=KD)))
    with pytest.raises(ValueError, match=r"distill_losses.cls .*'loss_cls', but the student .*rename it in distill_losses"):
        distiller(**rival_batch(distiller, 'retinanet'), mode='loss')


def test_a_name_that_the_method_uses_is_refused(tmp_path: Any) -> None:
    """It would take the place of the method's own loss."""
    config = rival_config('DSKDDistiller', 'gap', tmp_path, distill_losses=dict(dskd_logit=KD))
    distiller = build_distiller(config)
    with pytest.raises(ValueError, match=r"distill_losses.dskd_logit .*'loss_dskd_logit', but the method .*rename it in"):
        distiller(**rival_batch(distiller, 'gap'), mode='loss')


def test_a_name_that_student_and_method_use_is_refused() -> None:
    with pytest.raises(ValueError, match=r"both return \['b'\]; rename those of the student"):
        check_names(['a', 'b'], ['b'], ['c'])
    check_names(['a'], ['b'], ['c'])


@needs_mmdet
def test_other_levels_are_refused(tmp_path: Any) -> None:
    layers = dict(m=dict(student=dict(path='neck', channels=8, index='all'), teacher=dict(path='neck', channels=12, index=0)))
    losses = dict(a=dict(**PKD, on='m'))
    distiller = build_distiller(
        rival_config('ConfigurableDistiller', 'retinanet', tmp_path, distill_losses=losses, layers=layers)
    )
    with pytest.raises(ValueError, match='teacher has 1 levels, the student 5'):
        distiller(**rival_batch(distiller, 'retinanet'), mode='loss')
