"""A method is put over a pair: what stays, in which order settings are merged, and what is refused."""

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mmengine.config import Config

from dskd_mm.utils.methods import apply_method, methods

STUDENT = dict(type='ImageClassifier', head=dict(type='LinearClsHead', loss=dict(type='CrossEntropyLoss')))


def pair(
    folder: Path, name: str = 'pair', scope: str | None = 'mmpretrain', student: dict | None = None, **model: Any
) -> Config:
    """The config of a pair as read from a file, distilled by a method with settings of its own."""
    whole = dict(type='dskd_mm.DSKDDistiller', student=student or STUDENT, teacher=dict(config='t.py', checkpoint='t.pth'))
    cfg = Config(dict(default_scope=scope, custom_imports=dict(imports=['dskd_mm']), model=whole | model, seed=3))
    cfg.dump(str(folder / f'{name}.py'))
    return Config.fromfile(folder / f'{name}.py')


def method(folder: Path, text: str) -> str:
    (folder / 'my_method.py').write_text(text)
    return str(folder / 'my_method.py')


def test_the_pair_stays_and_the_other_methods_settings_go(tmp_path: Path) -> None:
    cfg = pair(tmp_path, imitation=dict(type='dskd_mm.DKDLoss'), site=dict(stage=0), data_preprocessor=dict(type='P'))
    before = copy.deepcopy(cfg.to_dict())
    found = apply_method(cfg, 'vkd')
    assert found.model.type == 'dskd_mm.VkDDistiller'
    assert set(found.model) == {'type', 'student', 'teacher', 'data_preprocessor'}
    for key in ('student', 'teacher'):
        assert found.model[key] == cfg.model[key]
    assert {key: value for key, value in found.items() if key != 'model'} == {
        key: value for key, value in cfg.items() if key != 'model'
    }
    assert cfg.to_dict() == before


ROWS = """
model = dict(type='Mine', a=1, b=1, c=1, d=1, nested=dict(x=1, y=1))
classification = dict(b=2, c=2, d=2)
detection = dict(b=3, c=3, d=3)
two_stage_detection = dict(c=4, d=4)
pairs = {'pa.r$': dict(d=5), 'other': dict(d=6), '^pair': dict(nested=dict(_delete_=True, z=7))}
custom_imports = dict(imports=['dskd_mm', 'support.runs'])
"""


@pytest.mark.parametrize(
    ('scope', 'student', 'expected'),
    [
        ('mmpretrain', {}, dict(a=1, b=2, c=2, d=5)),
        ('mmdet', {}, dict(a=1, b=3, c=3, d=5)),
        ('mmdet', dict(roi_head=dict(type='R')), dict(a=1, b=3, c=4, d=5)),
        ('mmseg', {}, dict(a=1, b=1, c=1, d=5)),
        (None, dict(type='mmdet.RetinaNet'), dict(a=1, b=3, c=3, d=5)),
        (None, dict(_scope_='mmpretrain'), dict(a=1, b=2, c=2, d=5)),
    ],
)
def test_settings_are_merged_from_the_general_to_the_special(tmp_path: Path, scope: Any, student: dict, expected: dict) -> None:
    found = apply_method(pair(tmp_path, scope=scope, student=dict(type='S') | student), method(tmp_path, ROWS))
    assert {key: found.model[key] for key in expected} == expected
    assert found.model.nested == dict(z=7)
    assert '_delete_' not in found.pretty_text
    # What is no setting of the model goes to the whole config.
    assert found.custom_imports.imports == ['dskd_mm', 'support.runs'] and 'pairs' not in found


def test_the_result_is_whole(tmp_path: Path) -> None:
    """What the runner dumps is read as the same config."""
    found = apply_method(pair(tmp_path, 'x_cifar100'), 'kd')
    assert found.model.student.head.loss == dict(type='CrossEntropyLoss', loss_weight=0.1)
    found.dump(str(tmp_path / 'dumped.py'))
    assert Config.fromfile(tmp_path / 'dumped.py').to_dict() == found.to_dict()


@pytest.mark.parametrize(
    ('name', 'words'),
    [
        ('cwd', r"cwd.py has no settings for 'classification', which pair \(ImageClassifier\) is"),
        ('vkd2', r"Expected one of the methods at, .*vkd, or the path of a file \(.py\), but got 'vkd2'. DSKD needs no"),
    ],
)
def test_what_cannot_be_applied_is_told(tmp_path: Path, name: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        apply_method(pair(tmp_path), name)


def test_a_task_that_nothing_tells_is_asked_for(tmp_path: Path) -> None:
    cfg = pair(tmp_path, scope=None, student=dict(type='S'))
    with pytest.raises(
        ValueError, match=r"default_scope to be one of mmpretrain, .*has None, .*student is 'S'. Set default_scope"
    ):
        apply_method(cfg, 'at')
    cfg.default_scope = 'mmpretrain'  # the mend
    assert 'at1' in apply_method(cfg, 'at').model.distill_losses


def test_a_special_setting_may_allow_or_refuse(tmp_path: Path) -> None:
    two_stages = dict(type='FasterRCNN', roi_head=dict(type='R'))
    assert apply_method(pair(tmp_path, scope='mmdet', student=two_stages), 'dkd').model.distill_losses.dkd.beta == 0.25
    with pytest.raises(ValueError, match="no settings for 'dsb2018'"):
        apply_method(pair(tmp_path, 'mask-rcnn_dsb2018', 'mmdet', two_stages), 'dkd')
    with pytest.raises(FileNotFoundError, match=r'nowhere.py'):
        apply_method(pair(tmp_path), 'nowhere.py')


def test_a_plain_config_is_refused(tmp_path: Path) -> None:
    cfg = pair(tmp_path)
    cfg.model = STUDENT
    with pytest.raises(ValueError, match=r'student and a teacher.*the model of .*pair.py is a ImageClassifier'):
        apply_method(cfg, 'vkd')


def test_methods_are_the_files() -> None:
    assert {'kd', 'vkd', 'diffkd'} < set(methods())
    assert all(Path(path).stem == name for name, path in methods().items())


@pytest.mark.parametrize('place', ['.mim/configs', '../configs'])
def test_they_are_found_in_a_wheel_and_in_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    package = tmp_path / 'dskd_mm'
    (package / place / 'methods').mkdir(parents=True)
    (package / place / 'methods' / 'kd.py').write_text('')
    spec = SimpleNamespace(origin=str(package / '__init__.py'))
    monkeypatch.setattr('dskd_mm.utils.config.importlib.util.find_spec', lambda name: spec)
    assert [Path(path).resolve() for path in methods().values()] == [(package / place / 'methods' / 'kd.py').resolve()]
