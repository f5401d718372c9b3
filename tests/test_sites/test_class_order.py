"""A teacher that knows the classes in another order, or more of them than the student."""

import re
from importlib.util import find_spec
from typing import Any

import pytest
import torch

from dskd_mm.testing import TOY_CLASSES, classifier_config, random_batch, random_teacher
from dskd_mm.utils.classes import class_indices
from support import (
    DENSE_SIZE,
    build_distiller,
    dense_distiller_config,
    detection_batch,
    distiller_run_config,
    random_boxes,
    segmentation_batch,
    toy_runner,
    watch,
)

NAMES = ['ant', 'bee', 'cat', 'dog', 'eel']
ORDER = [3, 0, 4, 2, 1]
"""The class of the data that each of the teacher's classes is."""
DENSE_ORDER = [2, 0, 1]
# Which weights are those of classes, by kind: how many of them at a location, and numbers of each.
DENSE = {
    'retinanet': {r'retina_cls\.': (9, 1)},
    'retinanet_softmax': {r'retina_cls\.': (9, 1)},
    'rtmdet': {r'rtm_cls\.\d\.': (1, 1)},
    'yolof': {r'bbox_head\.cls_score\.': (5, 1)},
    'faster_rcnn': {r'bbox_head\.fc_cls\.': (1, 1), r'bbox_head\.fc_reg\.': (1, 4)},
    'fcn': {r'decode_head\.conv_seg\.': (1, 1)},
}


def permute(checkpoint: str, weights: dict[str, tuple[int, int]], order: list[int], names: list[str]) -> None:
    """Let a checkpoint know the classes in another order, and tell so; a background stays the last."""
    saved = torch.load(checkpoint)
    for key, value in saved['state_dict'].items():
        for pattern, (priors, numbers) in weights.items():
            if re.search(pattern, key):
                rows = value.unflatten(0, (priors, -1, numbers))
                moved = [*order, *range(len(order), rows.shape[1])]
                saved['state_dict'][key] = rows[:, moved].flatten(0, 2)
    saved['meta'] = dict(dataset_meta=dict(classes=tuple(names[i] for i in order)))
    torch.save(saved, checkpoint)


def step(config: dict, batch: Any) -> dict[str, torch.Tensor]:
    """The losses of a distiller's first step; dropout and samplers draw the same numbers."""
    torch.manual_seed(0)
    return build_distiller(config)(**batch, mode='loss')


def assert_the_same(config: dict, batch: Any, weights: dict[str, tuple[int, int]], order: list[int]) -> None:
    """A teacher in another order, matched, teaches what it taught; and something else if it is not matched."""
    names = NAMES[: len(order)]
    config = {**config, 'noise_seed': 0}
    before = step(config, batch)
    permute(config['teacher']['checkpoint'], weights, order, names)
    confused = step(config, batch)
    after = step({**config, 'teacher': {**config['teacher'], 'match_classes': names}}, batch)
    assert before.keys() == after.keys()
    own = [key for key in before if 'dskd' in key]
    for key in own:
        torch.testing.assert_close(after[key], before[key], rtol=1e-4, atol=1e-6, msg=lambda text, key=key: f'{key}: {text}')
    assert any(not torch.allclose(confused[key], before[key], rtol=1e-2) for key in own)


@pytest.mark.parametrize(
    'options', [{}, dict(preset='teacher_free'), dict(distill_losses=dict(dist=dict(type='dskd_mm.DISTLoss')))]
)
@pytest.mark.parametrize('kind', ['gap', 'stacked', 'vit', 'multi_label'])
def test_classifiers(tmp_path, kind: str, options: dict) -> None:
    if kind == 'multi_label' and 'distill_losses' in options:
        pytest.skip('DIST is of exclusive classes')
    images, samples = random_batch(multi_label=kind == 'multi_label')
    student = classifier_config('multi_label' if kind == 'multi_label' else 'gap')
    config = dict(type='dskd_mm.DSKDDistiller', student=student, teacher=random_teacher(str(tmp_path), kind=kind), **options)
    last = {'stacked': r'head\.layers\.2\.', 'vit': r'head\.layers\.head\.'}.get(kind, r'head\.fc\.')
    assert_the_same(config, dict(inputs=images, data_samples=samples), {last: (1, 1)}, ORDER)


@pytest.mark.skipif(not find_spec('mmdet'), reason='mmdet is not installed')
@pytest.mark.parametrize('kind', [kind for kind in DENSE if kind != 'fcn'])
def test_detectors(tmp_path, kind: str) -> None:
    config = dense_distiller_config(kind, str(tmp_path))
    distiller = build_distiller(config)
    batch = detection_batch(distiller, [random_boxes(3), random_boxes(2, seed=1)])
    assert_the_same(config, batch, DENSE[kind], DENSE_ORDER)


@pytest.mark.skipif(not find_spec('mmseg'), reason='mmseg is not installed')
def test_segmenters(tmp_path) -> None:
    config = dense_distiller_config('fcn', str(tmp_path))
    labels = torch.zeros(2, *DENSE_SIZE, dtype=torch.long)
    labels[:, 20:45], labels[:, 50:] = 1, 2
    assert_the_same(config, segmentation_batch(build_distiller(config), labels), DENSE['fcn'], DENSE_ORDER)


@pytest.mark.parametrize('options', [{}, dict(preset='teacher_free')])
def test_a_teacher_of_more_classes_teaches_those_of_the_data(tmp_path, options: dict) -> None:
    teacher = random_teacher(str(tmp_path))
    permute(teacher['checkpoint'], {}, list(range(TOY_CLASSES)), NAMES)
    student, wanted = classifier_config(num_classes=3), ['eel', 'bee', 'dog']
    config = dict(type='dskd_mm.DSKDDistiller', student=student, **options)
    with pytest.raises(ValueError, match=r'student classifies 3 .* teacher 5 .*match_classes=True'):
        build_distiller({**config, 'teacher': teacher})
    distiller = build_distiller({**config, 'teacher': {**teacher, 'match_classes': wanted}})
    images, samples = random_batch(num_classes=3)
    calls = watch(distiller, 'distill')
    distiller(images, samples, mode='loss')
    weight = torch.load(teacher['checkpoint'])['state_dict']['head.fc.weight']
    assert torch.equal(distiller.classifiers[0].weight, weight[[4, 1, 3]])
    if not options:
        said = distiller.teacher.model(images, mode='tensor')
        assert torch.equal(calls[-1].args[1].logits, said[:, [4, 1, 3]])


def test_each_of_several_teachers_has_an_order_of_its_own(tmp_path) -> None:
    for name in 'ab':
        (tmp_path / name).mkdir()
    first, second = (random_teacher(str(tmp_path / name), seed=i) for i, name in enumerate('ab'))
    batch = dict(zip(('inputs', 'data_samples'), random_batch(), strict=True))
    config = dict(type='dskd_mm.DSKDDistiller', student=classifier_config(), teacher=[first, second], noise_seed=0)
    before = step(config, batch)
    permute(second['checkpoint'], {r'head\.fc\.': (1, 1)}, ORDER, NAMES)
    after = step({**config, 'teacher': [first, {**second, 'match_classes': NAMES}]}, batch)
    assert before.keys() == after.keys()
    for key, value in before.items():
        torch.testing.assert_close(after[key], value)
    assert not torch.allclose(step(config, batch)['loss_dskd_logit'], before['loss_dskd_logit'], rtol=1e-2)


@pytest.mark.parametrize(
    ('known', 'names', 'message'),
    [
        ([*NAMES[:4], 'fox'], NAMES, "'eel' is none of its 5 classes"),
        ([*NAMES, 'fox'], NAMES, 'names 6 classes and its classifier has 5 outputs'),
        (NAMES, NAMES[:4], 'got 5 for 4 classes'),
        (None, NAMES, 'the checkpoint has none. Give the data the order of the teacher'),
        (NAMES, True, r'the data has none\. Name them: match_classes=\[\.\.\.\]'),
    ],
)
def test_classes_that_cannot_be_matched_are_refused(tmp_path, monkeypatch, known, names, message: str) -> None:
    monkeypatch.setattr('dskd_mm.teacher.training_classes', lambda: None)
    teacher = random_teacher(str(tmp_path))
    saved = torch.load(teacher['checkpoint'])
    saved['meta'] = dict(CLASSES=known) if known is not NAMES else dict(dataset_meta=dict(classes=known))
    torch.save(saved, teacher['checkpoint'])
    config = dict(type='dskd_mm.DSKDDistiller', student=classifier_config(), teacher={**teacher, 'match_classes': names})
    with pytest.raises(ValueError, match=message):
        build_distiller(config).load_teacher()


def test_where_the_head_reads_the_labels_nothing_can_be_matched(tmp_path) -> None:
    pytest.importorskip('mmdet')
    config = dense_distiller_config('retinanet', str(tmp_path), site=dict(type='dskd_mm.NeckSite'))
    config.teacher.match_classes = True
    with pytest.raises(ValueError, match=r'whole head reads the labels\. Give the data'):
        build_distiller(config)


def test_a_background_stays_behind_the_classes() -> None:
    assert class_indices('abc', 'cab', 4) == (2, 0, 1, 3)
    assert class_indices('abc', 'b', 3) == (1,)


@pytest.mark.parametrize('matched', [False, True])
def test_a_training_tells_of_another_order_and_matches_it(tmp_path, caplog, matched: bool) -> None:
    patterns = [f'pattern {k}' for k in range(TOY_CLASSES)]
    config = distiller_run_config(str(tmp_path))
    permute(config['model']['teacher']['checkpoint'], {}, ORDER, patterns)
    if matched:
        config['model']['teacher']['match_classes'] = True
    runner = toy_runner(config)
    told = watch(runner.logger, 'handle')
    runner.train()
    text = '\n'.join(call.args[0].getMessage() for call in told)
    warning = "class 0 is 'pattern 3' to the teacher and 'pattern 0' in the data"
    assert (warning in text) != matched
    assert runner.model.teacher.classes == (tuple(ORDER.index(k) for k in range(TOY_CLASSES)) if matched else ())
