"""Several teachers: their class probabilities are averaged, and the first is the teacher in all else."""

from importlib.util import find_spec
from typing import Any

import pytest
import torch

from dskd_mm.distillers.ensemble import average_logits
from dskd_mm.preflight import check_config
from dskd_mm.testing import classifier_config, random_batch, random_teacher, save_random_model, train
from support import (
    DENSE_SIZE,
    build_distiller,
    dense_distiller_config,
    detection_batch,
    detector_config,
    distiller_run_config,
    random_boxes,
    segmentation_batch,
    segmentor_config,
    watch,
)

KD = dict(kd=dict(type='dskd_mm.KDLoss'), dist=dict(type='dskd_mm.DISTLoss'))
DSKD = 'dskd_mm.DSKDDistiller'
CONFIGURABLE = 'dskd_mm.ConfigurableDistiller'


@pytest.mark.parametrize('shape', [(3, 5), (2, 5, 4, 6)])
def test_posteriors_are_averaged(shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    one, other = torch.randn(2, *shape, generator=generator, dtype=torch.float64) * 3
    both = average_logits([one, other], [1.0, 3.0], sigmoid=False).double()
    expected = (one.softmax(dim=1) + 3 * other.softmax(dim=1)) / 4
    torch.testing.assert_close(both.softmax(dim=1), expected, rtol=1e-4, atol=1e-6)
    both = average_logits([one, other], [1.0, 3.0], sigmoid=True).double()
    torch.testing.assert_close(both.sigmoid(), (one.sigmoid() + 3 * other.sigmoid()) / 4, rtol=1e-4, atol=1e-6)
    for sigmoid in (False, True):
        torch.testing.assert_close(average_logits([one, one], [1.0, 3.0], sigmoid), one.float(), rtol=1e-5, atol=1e-5)


def test_an_unlikely_class_stays_finite() -> None:
    far = torch.tensor([[200.0, -200.0, 0.0]])
    for sigmoid in (False, True):
        torch.testing.assert_close(average_logits([far, far], [1.0, 1.0], sigmoid), far, rtol=1e-5, atol=1e-4)


def second_of(teacher: dict[str, Any], path: Any, config: Any = None, wide: str = r'^head\.') -> dict[str, Any]:
    """Another teacher with other random weights, and maybe another network."""
    config = config or teacher['config']['model']
    save_random_model(config, str(path / 'second.pth'), wide, seed=7)
    return dict(config=dict(model=config), checkpoint=str(path / 'second.pth'))


CASES = [
    'gap',
    'multi_label',
    *(['fcn', 'binary'] if find_spec('mmseg') else []),
    *(['retinanet', 'retinanet_softmax', 'faster_rcnn'] if find_spec('mmdet') else []),
]


def pair_of(kind: str, path: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The arguments of a distiller and of a second teacher."""
    if kind in ('gap', 'multi_label'):
        teacher = random_teacher(str(path), kind=kind)
        config = dict(student=classifier_config(kind), teacher=teacher)
        return config, second_of(teacher, path, classifier_config(kind, width=8))
    config = dense_distiller_config(kind, str(path))
    make = segmentor_config if kind in ('fcn', 'binary') else detector_config
    wide = r'conv_seg' if kind in ('fcn', 'binary') else r'retina_cls|fc_cls'
    return config, second_of(config['teacher'], path, make(kind, width=8), wide)


def batch_of(kind: str, distiller: Any) -> dict[str, Any]:
    if kind in ('gap', 'multi_label'):
        return dict(zip(('inputs', 'data_samples'), random_batch(multi_label=kind == 'multi_label'), strict=True))
    if kind in ('fcn', 'binary'):
        labels = torch.zeros(2, *DENSE_SIZE, dtype=torch.long)
        labels[:, 20:45] = 1
        return segmentation_batch(distiller, labels)
    return detection_batch(distiller, [random_boxes(3), random_boxes(2, seed=1)])


def run(
    config: dict[str, Any], kind: str, teacher: Any, method: str = DSKD, like: Any = None, **kwargs: Any
) -> tuple[Any, Any, Any]:
    """A step's losses, the outputs that it compared, and the distiller, with another one's weights."""
    distiller = build_distiller({**config, 'type': method, 'teacher': teacher, 'noise_seed': 1, 'warmup': 0, **kwargs})
    if like is not None:
        distiller.load_state_dict(like, strict=False)
    weights = {key: value.clone() for key, value in distiller.state_dict().items()}
    calls, batch = watch(distiller, 'distill'), batch_of(kind, distiller)
    distiller.load_teacher()  # building them draws random numbers
    torch.manual_seed(1)
    losses = distiller(**batch, mode='loss')
    return losses, calls[-1].args, (distiller, weights)


def student_of(weights: dict[str, Any]) -> dict[str, Any]:
    """The student's weights alone: another teacher has features of another width."""
    return {key: value for key, value in weights.items() if key.startswith('student.')}


def probabilities(outputs: Any, sigmoid: bool) -> torch.Tensor:
    return outputs.logits.sigmoid() if sigmoid else outputs.logits.softmax(dim=1)


@pytest.mark.parametrize('kind', CASES)
def test_a_step_sees_the_weighted_mean_and_the_features_of_the_first(tmp_path, kind: str) -> None:
    config, second = pair_of(kind, tmp_path)
    first = config['teacher']
    _, _, (distiller, weights) = run(config, kind, first)
    teachers = first, second, [first, {**second, 'weight': 3.0}]
    outputs = [run(config, kind, teacher, like=student_of(weights))[1][1] for teacher in teachers]
    sigmoid = distiller.teacher_spec.sigmoid
    one, other, both = (probabilities(each, sigmoid) for each in outputs)
    torch.testing.assert_close(both, (one + 3 * other) / 4, rtol=1e-4, atol=1e-6)
    assert float((one - other).abs().max()) > 0.01
    torch.testing.assert_close(outputs[2].features, outputs[0].features)
    torch.testing.assert_close(outputs[2].box_levels, outputs[0].box_levels)


@pytest.mark.parametrize('kind', CASES)
@pytest.mark.parametrize('method', [DSKD, CONFIGURABLE])
def test_two_equal_teachers_are_one(tmp_path, kind: str, method: str) -> None:
    config, _ = pair_of(kind, tmp_path)
    added = dict(distill_losses={'kd': KD['kd']} if kind == 'binary' else KD)
    alone, _, (_, weights) = run(config, kind, config['teacher'], method, **added)
    twice, _, (distiller, _) = run(config, kind, [config['teacher']] * 2, method, weights, **added)
    assert {'loss_kd'} <= set(alone) == set(twice)
    for name, value in alone.items():
        for own, other in zip(*([v] if torch.is_tensor(v) else v for v in (value, twice[name])), strict=True):
            torch.testing.assert_close(own, other, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f'{name}: {text}')
    assert all('teacher' not in key for key in distiller.state_dict())


def test_they_train_and_follow_a_cast(tmp_path) -> None:
    config, second = pair_of('gap', tmp_path)
    distiller = build_distiller({**config, 'type': DSKD, 'teacher': [config['teacher'], second]})
    batch = batch_of('gap', distiller)
    for log in train(distiller, batch):
        assert all(bool(value.isfinite()) for value in log.values())
    distiller.double()
    (other, _), *_ = distiller.other_teachers
    assert next(other.model.parameters()).dtype == torch.float64


@pytest.mark.parametrize(
    ('kwargs', 'message'),
    [
        (dict(type='dskd_mm.VkDDistiller'), r'VkDDistiller compares features with those of one teacher, but got several'),
        (dict(type='dskd_mm.DiffKDDistiller'), r'DiffKDDistiller compares features'),
        (
            dict(type=CONFIGURABLE, distill_losses=dict(fit=dict(type='dskd_mm.FitNetLoss'))),
            r'distill_losses\.fit \(FitNetLoss\) compares the student with one teacher',
        ),
        (dict(type=DSKD, preset='teacher_free'), r'none of its options reads them'),
    ],
)
def test_where_it_is_not_defined_it_is_refused_and_what_is_advised_works(tmp_path, kwargs: dict, message: str) -> None:
    config, second = pair_of('gap', tmp_path)
    several = {**config, 'teacher': [config['teacher'], second]}
    with pytest.raises(ValueError, match=message):
        build_distiller({**several, **kwargs})
    build_distiller({**config, **kwargs})
    build_distiller({**several, 'type': DSKD})
    build_distiller({**several, 'type': CONFIGURABLE, 'distill_losses': dict(kd=dict(type='dskd_mm.KDLoss'))})


def test_preflight_looks_at_each_of_them(tmp_path) -> None:
    _, second = pair_of('gap', tmp_path)
    cfg = distiller_run_config(str(tmp_path))
    cfg.model.teacher = [cfg.model.teacher, second]
    report = check_config(cfg)
    assert report.faults == []
    assert 'teacher 1' in {finding.subject for finding in report.findings}
    cfg.model.teacher[1].checkpoint = str(tmp_path / 'missing.pth')
    (fault,) = check_config(cfg).faults
    assert fault.subject == 'teacher 1' and 'missing.pth' in fault.text


def test_other_classes_of_one_of_them_are_refused(tmp_path) -> None:
    config, _ = pair_of('gap', tmp_path)
    for kind, classes, message in (
        ('gap', 4, r'both must know the same classes'),
        ('multi_label', 5, r'of teacher 1 independent'),
    ):
        second = second_of(config['teacher'], tmp_path, classifier_config(kind, num_classes=classes))
        with pytest.raises(ValueError, match=message):
            build_distiller({**config, 'type': DSKD, 'teacher': [config['teacher'], second]})
    with pytest.raises(TypeError, match=r'teacher expects dict\(config=\.\.\., checkpoint=\.\.\.\)'):
        build_distiller({**config, 'type': DSKD, 'teacher': []})
    with pytest.raises(ValueError, match=r'weight of a teacher must be positive'):
        build_distiller({**config, 'type': DSKD, 'teacher': {**config['teacher'], 'weight': 0}})
