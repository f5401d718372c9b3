"""`dskd distill` from a plain config to a tested student, and `dskd taps`."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config
from mmengine.registry import MODELS as MMENGINE_MODELS
from torch import nn

from dskd_mm.cli.distill import base_path, import_path, source
from dskd_mm.cli.main import main
from dskd_mm.testing import random_teacher
from dskd_mm.utils.checkpoint import load_plain_model
from dskd_mm.utils.config import load_config
from support import plain_run_config
from support.tools import named


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    """A plain config in a folder of its own, with a teacher beside it."""
    folder = tmp_path / 'mine'
    folder.mkdir()
    teacher = random_teacher(str(folder))
    Config(teacher['config']).dump(str(folder / 'teacher.py'))
    plain_run_config(str(tmp_path / 'work')).dump(str(folder / 'plain.py'))
    return folder / 'plain.py'


def distill(plain: Path, *arguments: Any) -> None:
    teacher = ['--teacher', plain.with_name('teacher.py'), '--teacher-checkpoint', plain.with_name('teacher.pth')]
    main(['distill', *map(str, [plain, *teacher, *arguments])])


@pytest.mark.parametrize('method', ['dskd', 'kd'])
def test_from_a_plain_config_to_a_tested_student(
    plain: Path, tmp_path: Path, method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / 'new' / 'out.py'
    options = ['--cfg-options', *named(f'distill_{method}'), 'train_cfg.max_epochs=1']
    distill(plain, '--method', method, '--out', out, '--train', *options)
    text = out.read_text()
    assert text in capsys.readouterr().out and "_base_ = '../mine/plain.py'" in text
    assert [line for line in text.splitlines() if len(line) > 100 and '/' not in line] == []
    # What was trained is the config's own student, and the file by itself gives its number.
    checkpoint = tmp_path / 'work' / 'student_last.pth'
    load_plain_model(MMENGINE_MODELS.build(Config.fromfile(plain).model), str(checkpoint))
    results = [tmp_path / 'distiller.json', tmp_path / 'plain.json']
    for config, result in zip((out, plain), results, strict=True):
        arguments = [config, checkpoint, '--out', result, '--out-item', 'metrics', '--work-dir', tmp_path]
        main(['test', *map(str, arguments), '--cfg-options', *named(f'{method}_{result.stem}')])
    assert json.loads(results[0].read_text()) == json.loads(results[1].read_text())


def test_a_method_leaves_its_settings_in_the_file(plain: Path, tmp_path: Path) -> None:
    distill(plain, '--method', 'mgd', '--out', tmp_path / 'mgd.py')
    cfg = Config.fromfile(tmp_path / 'mgd.py')
    assert cfg.model.type == 'dskd_mm.ConfigurableDistiller'
    assert cfg.model.distill_losses == dict(mgd=dict(type='dskd_mm.MGDLoss', mask='channel', mask_ratio=0.15, loss_weight=7e-5))
    assert cfg.model.student == Config.fromfile(plain).model
    assert set(cfg.custom_imports.imports) == {'dskd_mm', 'support.runs'}, "the student's own are kept"


def test_options_that_are_not_written_are_in_the_line_to_train_by(
    plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ['model.preset=published', 'model.sampler.steps=3', 'any.thing=a;b', 'some=[1,2]']
    distill(plain, '--out', tmp_path / 'out.py', '--cfg-options', *options)
    assert 'published' not in (tmp_path / 'out.py').read_text()
    line = capsys.readouterr().out.splitlines()[-1]
    assert shlex.split(line) == ['Train', 'it:', 'dskd', 'train', str(tmp_path / 'out.py'), '--cfg-options', *options]


@pytest.mark.parametrize('lazy', [False, True])
def test_what_a_method_sets_on_the_student_is_in_the_file(plain: Path, tmp_path: Path, lazy: bool) -> None:
    cfg = Config.fromfile(plain)
    cfg.custom_imports.imports = 'support.runs'  # as mmengine allows
    cfg.model.head.loss = dict(type='CrossEntropyLoss', loss_weight=1.0)
    named_after = plain.with_name('mine_cifar100.py')
    cfg.dump(str(named_after))
    if lazy:
        named_after.write_text('from mmpretrain.models import ImageClassifier\n' + named_after.read_text())
    distill(named_after, '--method', 'kd', '--out', tmp_path / 'kd.py')
    found = Config.fromfile(tmp_path / 'kd.py')
    assert found.model.student.head.loss.loss_weight == 0.1, 'beside which the loss of KD weighs 0.9'
    cfg.model.head.loss.loss_weight = 0.1
    assert found.model.student == cfg.model
    assert found.custom_imports.imports == ['dskd_mm', 'support.runs']


def test_a_config_in_pure_python_is_inherited_by_an_import(tmp_path: Path, plain: Path) -> None:
    lazy = plain.with_name('lazy.py')
    lazy.write_text(
        'from mmpretrain.models import ImageClassifier\n'
        + ''.join(f'{key} = {value!r}\n' for key, value in Config.fromfile(plain).to_dict().items())
    )
    distill(lazy, '--out', tmp_path / 'out.py')
    cfg = Config.fromfile(tmp_path / 'out.py')
    assert 'from .mine.lazy import *' in (tmp_path / 'out.py').read_text()
    assert cfg.model.student == Config.fromfile(plain).model and cfg.model.type == 'dskd_mm.DSKDDistiller'
    with pytest.raises(ValueError, match=r'pure Python.*`dskd config .*my-lazy\.py > plain\.py`'):
        import_path(str(tmp_path / 'my-lazy.py'), tmp_path / 'out.py')


def test_faults_are_told_and_nothing_is_trained(plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain.with_name('teacher.pth').unlink()
    with pytest.raises(SystemExit) as caught:
        distill(plain, '--out', tmp_path / 'out.py', '--train')
    assert caught.value.code == 1
    printed = capsys.readouterr().out
    assert 'FAULT' in printed and '1 faults' in printed and not (tmp_path / 'work' / 'epoch_1.pth').exists()


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (['--method', 'cwd'], ["no settings for 'classification'"]),
        (['--method', 'dksd'], ["but got 'dksd'", 'vkd']),
        (['--teacher', 'nowhere.py'], ["'nowhere.py'", 'there is none']),
        (['--teacher', 'nopackage::a.py'], ["'nopackage'", 'not installed']),
        (['--out', 'mine/plain.py'], ['plain.py is there already', '--out']),
    ],
    ids=lambda value: ' '.join(value),
)
def test_what_cannot_be_written_is_one_line(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as caught:
        distill(plain, *arguments)
    assert str(caught.value).startswith('dskd distill: ')
    assert [word for word in words if word not in str(caught.value)] == []
    assert [path.name for path in tmp_path.glob('*.py')] == []


HOSTS = dict(
    mmpretrain=[f'mmpretrain::resnet/resnet{depth}_8xb16_cifar10.py' for depth in (18, 34)],
    mmdet=[f'mmdet::retinanet/retinanet_r{depth}_fpn_1x_coco.py' for depth in (18, 50)],
    mmseg=[f'mmseg::pspnet/pspnet_r{depth}-d8_4xb2-80k_cityscapes-512x1024.py' for depth in (18, 50)],
)


@pytest.mark.parametrize('host', HOSTS)
def test_the_configs_of_the_hosts_are_distilled(host: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All is found in order, but for the data and the teacher's weights, which are not there."""
    pytest.importorskip(host)
    student, teacher = HOSTS[host]
    out = tmp_path / 'out.py'
    with pytest.raises(SystemExit):
        main(['distill', student, '--teacher', teacher, '--teacher-checkpoint', 'no.pth', '--out', str(out)])
    faults = [line.split('│')[1].strip() for line in capsys.readouterr().out.splitlines() if 'FAULT' in line]
    assert set(faults) <= {'data', 'checkpoints'} and 'checkpoints' in faults
    assert {**Config.fromfile(out).model.student, '_scope_': None} == {**load_config(student).model, '_scope_': None}


def test_a_distillers_config_is_no_student(plain: Path, tmp_path: Path) -> None:
    distill(plain, '--out', tmp_path / 'out.py')
    with pytest.raises(SystemExit, match='distils one: give the config that it inherits'):
        distill(tmp_path / 'out.py', '--teacher', plain.with_name('teacher.py'), '--out', tmp_path / 'twice.py')


def test_paths_are_relative_to_the_file() -> None:
    assert base_path('a/b.py', Path('out.py')) == 'a/b.py'
    assert base_path('a/b.py', Path('c/d/out.py')) == '../../a/b.py'
    assert import_path('a/b.py', Path('out.py')) == '.a.b'
    assert import_path('a/b.py', Path('c/d/out.py')) == '...a.b'


def test_settings_are_written_as_python() -> None:
    settings = {'a': {'type': 'A' * 40, 'b': [1, {'c': 2}], 'd': {'e': 'E' * 40}}, 'f': {'not a name': 1}}
    assert eval(source(settings)) == settings
    assert max(map(len, source(settings).splitlines())) <= 100


def test_taps_lists_shapes_and_the_default_site(plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    distill(plain, '--out', tmp_path / 'out.py')
    for config in (plain, tmp_path / 'out.py'):  # of a distiller's config its student
        capsys.readouterr()
        main(['taps', str(config), '--size', '32'])
        printed = capsys.readouterr().out
        rows = {line.split()[0]: line.split()[1:] for line in printed.split('\n\n')[1].splitlines()}
        assert 'ClassificationSite' in printed and 'missing' not in printed
        model = MMENGINE_MODELS.build(Config.fromfile(plain).model)
        (classifier,) = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)]
        assert rows[classifier][0] == 'Linear' and rows[classifier][-1] == 'classifier'
        assert [row for row in rows.values() if 'feature' in row]
        assert int(rows['backbone'][2]) == model.get_submodule(classifier).in_features
    main(['taps', str(plain), '--grep', 'head'])
    listed = capsys.readouterr().out.split('\n\n')[1].splitlines()[1:]
    assert listed and all(line.startswith('head') for line in listed)


def test_taps_of_a_pyramid_and_of_a_pass_that_ends_early(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip('mmdet')
    main(['taps', 'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py'])
    printed = capsys.readouterr().out
    (row,) = [line.split() for line in printed.splitlines() if line.startswith('neck ')]
    assert row[2:7] == ['256x32x32', '256x16x16', '256x8x8', '256x4x4', '256x2x2']
    assert row[7:] == ['256', '8', '16', '32', '64', '128']
    main(['taps', 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'])
    printed = capsys.readouterr().out
    assert 'later modules are missing' in printed and 'neck.fpn_convs.0' in printed
