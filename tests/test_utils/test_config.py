"""Reading configs and reducing a distiller's to its student."""

from pathlib import Path

import pytest
from mmengine.config import Config
from mmengine.registry import MODELS as MMENGINE_MODELS

from dskd_mm.utils.config import (
    is_distiller_config,
    load_config,
    model_config,
    num_classes,
    resolve_config_path,
    student_config,
    type_module,
    type_name,
)


def distiller(**kwargs: object) -> Config:
    model = dict(type='dskd_mm.DSKDDistiller', student=dict(type='ImageClassifier'), teacher=dict(config='t.py'))
    return Config({'default_scope': 'mmpretrain', 'model': {**model, **kwargs}})


def test_the_classes_of_a_model_are_told_by_its_head_or_by_itself() -> None:
    told = [dict(head=dict(type='LinearClsHead', num_classes=4)), dict(num_classes=5), dict(num_labels=6), dict(), None]
    assert [num_classes(model) for model in told] == [4, 5, 6, None, None]


def test_the_config_of_an_installed_package_is_found() -> None:
    path = resolve_config_path('mmpretrain::resnet/resnet18_8xb16_cifar10.py')
    assert Path(path).is_file()
    model = model_config(load_config('mmpretrain::resnet/resnet18_8xb16_cifar10.py'))
    assert model._scope_ == 'mmpretrain'
    assert model.data_preprocessor.num_classes == 10  # stands beside the model in these configs
    assert MMENGINE_MODELS.build(model).head.fc.out_features == 10


def test_configs_of_other_kinds_are_refused() -> None:
    with pytest.raises(TypeError, match='must be a path or a dict, but got list'):
        load_config([])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"config with a model, but got one with the keys \['data_root'\]"):
        model_config(Config(dict(data_root='x')))
    with pytest.raises(FileNotFoundError, match=r'/nothing.py.*relative to the working directory'):
        load_config('nothing.py')


def test_what_only_distillation_needs_is_dropped() -> None:
    cfg = distiller()
    cfg.custom_hooks = [dict(type='dskd_mm.StudentExportHook'), dict(type='EMAHook')]
    cfg.custom_imports = dict(imports=['dskd_mm', 'my_package'], allow_failed_imports=False)
    cfg.optim_wrapper = dict(type='dskd_mm.BF16OptimWrapper', optimizer=dict(type='SGD', lr=0.1))  # of --amp on a CPU
    before = cfg.to_dict()
    plain = student_config(cfg)
    assert plain.model == dict(type='ImageClassifier')
    assert plain.default_scope == 'mmpretrain'
    assert [hook.type for hook in plain.custom_hooks] == ['EMAHook']
    assert plain.custom_imports.imports == ['my_package'] and plain.optim_wrapper.type == 'OptimWrapper'
    assert cfg.to_dict() == before
    assert is_distiller_config(cfg) and not is_distiller_config(plain)


def test_a_single_import_may_be_a_string() -> None:
    cfg = distiller()
    cfg.custom_imports = dict(imports='dskd_mm')
    assert student_config(cfg).custom_imports.imports == []


def test_the_student_inherits_what_the_distiller_would_have_given_it() -> None:
    given = dict(type='ClsDataPreprocessor', num_classes=3)
    plain = student_config(distiller(data_preprocessor=given, _scope_='mmpretrain'))
    assert plain.model == dict(type='ImageClassifier', data_preprocessor=given, _scope_='mmpretrain')
    own = dict(type='ImageClassifier', data_preprocessor=dict(num_classes=4), _scope_='mmdet')
    assert student_config(distiller(student=own, data_preprocessor=given, _scope_='mmpretrain')).model == own


def test_a_plain_config_stays_as_it_is() -> None:
    cfg = Config(dict(model=dict(type='ImageClassifier'), custom_hooks=[dict(type='dskd_mm.StudentExportHook')]))
    assert student_config(cfg).to_dict() == cfg.to_dict()
    assert not is_distiller_config(Config(dict(data_root='x')))


def test_types_are_names_or_classes() -> None:
    assert (type_module(dict(type='dskd_mm.X')), type_name(dict(type='dskd_mm.X'))) == ('dskd_mm', 'X')
    assert (type_module(dict(type='X')), type_name(dict(type='X'))) == ('', 'X')
    assert (type_module(dict(type=Config)), type_name(dict(type=Config))) == ('mmengine', 'Config')
    assert (type_module(dict()), type_name(dict())) == ('', '')


def test_a_config_of_this_package_is_inherited_by_its_address(tmp_path: Path) -> None:
    """As by its path: types keep the scope of the config that inherits them, the base's own bases and folder are found."""
    name = 'dskd/resnet8-w16_r14-w32_cifar100-subset.py'
    path = resolve_config_path(f'dskd_mm::{name}')
    for stem, base in (('addressed', f'dskd_mm::{name}'), ('named', path)):
        text = f'_base_ = {base!r}\nmodel = dict(temperature=2)\nplain = _base_.model.student\n'
        (tmp_path / f'{stem}.py').write_text(text)
    addressed, named = (load_config(str(tmp_path / f'{stem}.py')) for stem in ('addressed', 'named'))
    assert addressed.to_dict() == named.to_dict()
    assert addressed.model.temperature == 2 and Path(addressed.model.teacher.config).is_file()
    assert '_scope_' not in str(addressed.to_dict())
    assert MMENGINE_MODELS.get('mmpretrain.' + addressed.plain.type) is type(
        MMENGINE_MODELS.build(model_config(student_config(addressed)))
    )


def test_bases_of_hosts_keep_their_scope(tmp_path: Path) -> None:
    (tmp_path / 'mine.py').write_text(
        "_base_ = ['dskd_mm::_base_/default_runtime.py', 'mmpretrain::_base_/models/resnet18.py']\n"
        'model = dict(student=_base_.model)\n'
    )
    assert load_config(str(tmp_path / 'mine.py')).model.student._scope_ == 'mmpretrain'


def test_a_base_of_a_fork_is_told_from_one_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """mmengine knows packages by their first distributions, and names what to install: a second one over the fork."""
    from mmengine.config import config as module

    def lost(name: str) -> bool:
        raise ModuleNotFoundError(f'{name} is not installed, please install {name} manually')

    monkeypatch.setattr(module, 'check_install_package', lost, raising=False)
    monkeypatch.setattr(module, 'get_installed_path', lost, raising=False)
    (tmp_path / 'mine.py').write_text("_base_ = 'mmpretrain::_base_/default_runtime.py'")
    with pytest.raises(ModuleNotFoundError, match=r'dskd config mmpretrain::_base_/default_runtime\.py > base\.py'):
        load_config(str(tmp_path / 'mine.py'))
    monkeypatch.setattr('dskd_mm.utils.config.importlib.util.find_spec', lambda name: None)
    with pytest.raises(ModuleNotFoundError, match=r'manually$'):
        load_config(str(tmp_path / 'mine.py'))


def test_a_base_of_this_package_that_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / 'mine.py').write_text("_base_ = 'dskd_mm::dskd/nothing.py'")
    with pytest.raises(FileNotFoundError, match=r"configs/dskd/nothing\.py' \('dskd_mm::dskd/nothing\.py'\)"):
        load_config(str(tmp_path / 'mine.py'))
