"""The command `dskd`: its list of commands, and that each is the code of the tool of old."""

import importlib
import sys
from pathlib import Path

import pytest
from mmengine.config import Config

from dskd_mm.cli.main import COMMANDS, main
from dskd_mm.utils.config import BY_NAME, SHOWS_STUDENT
from support.tools import run_process, run_script

ROOT = Path(__file__).parents[2]
SCRIPTS = dict(
    train='train.py',
    test='test.py',
    check='misc/check_config.py',
    config='misc/print_config.py',
    see='see.py',
    export='model_converters/export_student.py',
    onnx='model_converters/export_onnx.py',
    publish='model_converters/publish_model.py',
)


def output(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    with pytest.raises(SystemExit) as caught:
        main(argv)
    assert caught.value.code == 0
    return capsys.readouterr().out


def test_every_command_is_a_file_that_is_listed() -> None:
    files = {path.stem for path in (ROOT / 'dskd_mm/cli').glob('*.py')} - {'__init__', 'main', 'common'}
    assert files == set(COMMANDS)
    printed = run_process(sys.executable, '-m', 'dskd_mm', '--help', PYTHONPATH=str(ROOT))
    assert [name for name, about in COMMANDS.items() if f'{name} ' not in printed or about not in printed] == []


@pytest.mark.parametrize('name', COMMANDS)
def test_help_names_the_command_as_it_was_called(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    printed = output(capsys, name, '--help')
    assert printed.startswith(f'usage: dskd {name} ')
    about = ' '.join((importlib.import_module(f'dskd_mm.cli.{name}').__doc__ or '').split('\n\n')[0].split())
    assert about in ' '.join(printed.split())


@pytest.mark.parametrize(('name', 'script'), SCRIPTS.items())
def test_the_scripts_take_the_same_arguments(name: str, script: str, capsys: pytest.CaptureFixture[str]) -> None:
    mine = output(capsys, name, '--help')
    with pytest.raises(SystemExit):
        run_script(ROOT / 'tools' / script, '--help')
    theirs = capsys.readouterr().out
    assert mine.partition('\n\n')[2] == theirs.partition('\n\n')[2]


def test_a_command_that_is_not_known_is_refused_with_those_that_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(['trian'])
    assert caught.value.code == 2
    printed = capsys.readouterr().err
    assert "'trian'" in printed and all(name in printed for name in COMMANDS)


@pytest.mark.parametrize(
    ('arguments', 'words'),
    [
        (['report', 'nowhere'], "dskd report: Expected the folder of a training with .* in 'nowhere'"),
        (['taps', 'no.py'], r"dskd taps: Expected a config file at '.*no\.py'"),
        (['config', 'no.py'], r"dskd config: Expected a config file at '.*no\.py'"),
        (['train', 'no.py'], r"dskd train: Expected a config file at '.*no\.py'"),
        (['test', 'no.py', 'no.pth'], r"dskd test: Expected a config file at '.*no\.py'"),
        (['onnx', 'no.py', 'no.pth'], r"dskd onnx: Expected a config file at '.*no\.py'"),
        (['export', 'no.pth', 'x.pth'], r'dskd export: Expected a checkpoint at .*no\.pth'),
        (['export', 'no.pth', 'x.pth', '--config', 'no.py'], r"dskd export: Expected a config file at '.*no\.py'"),
        (['see', 'no.py', 'no.pth', 'no.png'], r'dskd see: Expected files of images, but there is none at no\.png'),
        (['config', 'PLAIN', '--method', 'kd'], r'dskd config: A method is put over a config whose model has a student'),
        (['train', 'PLAIN', '--method', 'none'], r'dskd train: A method is put over|dskd train: Expected one of the methods'),
    ],
    ids=lambda value: ' '.join(value) if isinstance(value, list) else '',
)
def test_a_mistake_is_one_line(arguments: list[str], words: str) -> None:
    plain = str(ROOT / 'configs/plain/resnet8-w8_fashion-mnist.py')
    with pytest.raises(SystemExit, match=f'^({words})') as caught:
        main([plain if word == 'PLAIN' else word for word in arguments])
    assert '\n' not in str(caught.value)


@pytest.mark.parametrize(('option', 'words'), [(['--grep', '['], 'regular expression'), (['--size', '0'], 'at least 1')])
def test_options_of_taps_are_read_before_any_work(option: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(['taps', 'no.py', *option])
    assert words in capsys.readouterr().err


def test_exporting_overwrites_nothing_that_it_reads(tmp_path: Path) -> None:
    config, checkpoint = tmp_path / 'my.py', tmp_path / 'epoch_1.pth'
    config.write_text("model = dict(type='X')\n")
    checkpoint.write_bytes(b'weights')
    for arguments in ([tmp_path / 'my.pth', '--config', config], [tmp_path / '../' / tmp_path.name / 'epoch_1.pth']):
        with pytest.raises(SystemExit, match=r'would be written over what is exported, .*: name another TARGET'):
            main(['export', str(checkpoint), *map(str, arguments)])
    assert config.read_text() == "model = dict(type='X')\n" and checkpoint.read_bytes() == b'weights'


def test_a_file_for_metrics_is_one_that_can_be_written(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(['test', 'no.py', 'no.pth', '--out', 'metrics.txt', '--out-item', 'metrics'])
    assert "--out expects a file that ends in .json, .yaml, .yml, .pkl, .pickle for metrics, but got 'metrics.txt'" in (
        capsys.readouterr().err
    )


def test_a_printed_config_trains_with_a_constructor_that_reads_names(capsys: pytest.CaptureFixture[str]) -> None:
    """Parameters of a distiller's student have other names than those by which constructors decay learning rates."""
    constructor = next(iter(BY_NAME))
    config = str(ROOT / 'configs/dskd/resnet20_r56_cifar100.py')
    main(['config', config, '--cfg-options', f'optim_wrapper.constructor={constructor}', 'optim_wrapper.paramwise_cfg.x=1'])
    printed = Config.fromstring(capsys.readouterr().out, '.py').optim_wrapper
    assert printed.constructor == SHOWS_STUDENT and printed.paramwise_cfg == dict(x=1, constructor=constructor)
