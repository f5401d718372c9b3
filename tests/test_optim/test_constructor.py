"""Learning rates that decay from layer to layer: the student's are those of the plain model."""

from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.model import MMDistributedDataParallel
from mmengine.optim import DefaultOptimWrapperConstructor, OptimWrapper, build_optim_wrapper
from mmengine.registry import OPTIM_WRAPPER_CONSTRUCTORS, DefaultScope
from torch import nn

from dskd_mm.optim import StudentOptimWrapperConstructor
from dskd_mm.testing import classifier_config, random_teacher
from dskd_mm.utils.config import hide_student, show_student
from support.dense import build_distiller, dense_distiller_config, detection_batch, random_boxes

LR = 1e-3
CONVNEXT = dict(
    type='mmpretrain.ConvNeXt',
    arch=dict(depths=[1, 1, 2, 1], channels=[4, 8, 16, 32]),
    out_indices=[0, 1, 2, 3],
    gap_before_final_norm=False,
)
DECAYS = {
    'mmpretrain': ('LearningRateDecayOptimWrapperConstructor', dict(layer_decay_rate=0.5)),
    'mmdet': ('LearningRateDecayOptimizerConstructor', dict(decay_rate=0.5, decay_type='layer_wise', num_layers=6)),
    'mmseg': ('LearningRateDecayOptimizerConstructor', dict(decay_rate=0.5, decay_type='stage_wise', num_layers=6)),
}


def make(host: str, folder: Path) -> nn.Module:
    """A distiller whose student's backbone has layers that the host's constructor knows."""
    if host == 'mmpretrain':
        teacher = random_teacher(str(folder))
        return build_distiller(ConfigDict(type='dskd_mm.DSKDDistiller', student=classifier_config('vit'), teacher=teacher))
    pytest.importorskip(host, reason=f'{host} is not installed')
    config = dense_distiller_config('retinanet' if host == 'mmdet' else 'upernet', str(folder))
    config.student.backbone = CONVNEXT
    return build_distiller(config)


def settings(host: str) -> ConfigDict:
    """The optimizer of such a student's own config."""
    constructor, rules = DECAYS[host]
    optimizer = dict(type='AdamW', lr=LR, weight_decay=0.05)
    return ConfigDict(type='OptimWrapper', optimizer=optimizer, constructor=constructor, paramwise_cfg=rules)


def build(model: nn.Module, optim_wrapper: dict, host: str) -> OptimWrapper:
    with DefaultScope.overwrite_default_scope(host):
        return build_optim_wrapper(model, ConfigDict(optim_wrapper))


def rates(wrapper: OptimWrapper) -> dict[int, tuple[float, float]]:
    """Learning rate and weight decay of each parameter."""
    groups: list[dict[str, Any]] = wrapper.optimizer.param_groups
    return {id(p): (group['lr'], group['weight_decay']) for group in groups for p in group['params']}


@pytest.mark.parametrize('host', list(DECAYS))
def test_the_student_learns_as_the_plain_model(host: str, tmp_path: Path) -> None:
    distiller = make(host, tmp_path)
    plain = rates(build(distiller.student, settings(host), host))
    assert len(set(plain.values())) > 3, 'there is something to lose'
    found = rates(build(distiller, show_student(settings(host)), host))
    assert {key: found.pop(key) for key in plain} == plain
    own = {id(p) for name, p in distiller.named_parameters() if p.requires_grad and not name.startswith('student.')}
    assert own and found == dict.fromkeys(own, (LR, 0.05))


def test_a_constructor_that_lost_its_layers_is_refused(tmp_path: Path) -> None:
    distiller = make('mmdet', tmp_path)
    batch = detection_batch(distiller, [random_boxes(2), random_boxes(1)])
    wrapper = build(distiller, settings('mmdet'), 'mmdet')
    with pytest.raises(ValueError, match=r"saw 'student\.backbone.*StudentOptimWrapperConstructor"):
        distiller.train_step(batch, wrapper)
    # Names alone are no fault: torch keeps them of whoever gives them.
    names, parameters = zip(*distiller.named_parameters(), strict=True)
    named = dict(params=list(parameters), param_names=list(names))
    distiller.train_step(batch, OptimWrapper(torch.optim.SGD([named], lr=0.0)))


def test_wrapped_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distiller = make('mmdet', tmp_path)
    monkeypatch.setattr(MMDistributedDataParallel, '__init__', lambda self, module: nn.Module.__init__(self))
    parallel: Any = MMDistributedDataParallel(distiller)
    parallel.module = distiller
    shown = show_student(settings('mmdet'))
    assert rates(build(parallel, shown, 'mmdet')) == rates(build(distiller, shown, 'mmdet'))


@pytest.mark.parametrize(
    'given',
    [
        dict(optimizer=dict(type='SGD', lr=0.1)),
        dict(optimizer=dict(type='SGD', lr=0.1), paramwise_cfg=dict(norm_decay_mult=0.0)),
        dict(optimizer=dict(type='SGD', lr=0.1), constructor='DefaultOptimWrapperConstructor'),
        dict(optimizer=dict(type='SGD', lr=0.1), constructor=DefaultOptimWrapperConstructor),
        settings('mmpretrain').to_dict(),
    ],
)
def test_constructors_that_do_not_go_by_names_stay(given: dict) -> None:
    assert show_student(given) == given


def test_the_plain_settings_come_back() -> None:
    given = settings('mmdet')
    before = given.to_dict()
    shown = show_student(given)
    assert shown.constructor == 'dskd_mm.StudentOptimWrapperConstructor'
    assert given.to_dict() == before
    assert show_student(shown) == shown, 'once is enough'
    assert hide_student(shown).to_dict() == before
    incomplete = {'constructor': shown.constructor}
    assert hide_student(given) == given and hide_student(incomplete) == incomplete


def test_classes_of_pure_python_configs_become_names_that_can_be_read_again(tmp_path: Path) -> None:
    optimizers = pytest.importorskip('mmdet.engine.optimizers', reason='mmdet is not installed')
    kind = optimizers.LearningRateDecayOptimizerConstructor
    shown = show_student({**settings('mmdet'), 'constructor': kind})
    cfg = Config(dict(optim_wrapper=shown))
    cfg.dump(str(tmp_path / 'config.py'))
    assert Config.fromfile(tmp_path / 'config.py').optim_wrapper == shown
    assert OPTIM_WRAPPER_CONSTRUCTORS.get(shown.paramwise_cfg.constructor) is kind
    assert hide_student({**shown, 'constructor': StudentOptimWrapperConstructor}) == hide_student(shown)


def test_another_constructor_is_expected() -> None:
    with pytest.raises(ValueError, match=r'expects the student.s own constructor.*but got \{\}'):
        StudentOptimWrapperConstructor(dict(optimizer=dict(type='SGD', lr=0.1)))
