"""The hosts' own tools on our configs and logs: each command of docs/en/host_tools.md is run, from where mim keeps them."""

import re
import shlex
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import NamedTuple

import matplotlib
import pytest

from dskd_mm.testing import random_teacher
from support import (
    DENSE_SIZE,
    EXISTING,
    detector_run_config,
    distiller_run_config,
    named,
    plain_run_config,
    run_script,
    segmentor_run_config,
    write_distiller_files,
    write_scenes,
)

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / 'docs/en/host_tools.md').read_text(encoding='utf-8')
COMMANDS = re.findall(r'^python (MM\w+)/tools/(\S+) (.*)$', PAGE.replace('\\\n', ' '), re.MULTILINE)
SIZES = {'224 224': '16 16', '512 1024': ' '.join(map(str, DENSE_SIZE)), '--num-images 10': '--num-images 1'}
"""What the toy models of a test take instead."""


class Run(NamedTuple):
    """A distillation that was trained by dskd_mm.

    Attributes:
        config (Path): The distiller's config.
        plain (Path): The plain student's.
        log (Path): What training logged, a JSON object a line.
    """

    config: Path
    plain: Path
    log: Path


@pytest.fixture(scope='module')
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Run]:
    """One training a host, when it is asked for."""
    matplotlib.use('Agg')

    @cache
    def train(host: str) -> Run:
        folder = tmp_path_factory.mktemp(host)
        if host == 'mmpretrain':
            plain_run_config(str(folder)).dump(str(folder / EXISTING))
            config = folder / 'distiller.py'
            distiller_run_config(str(folder), random_teacher(str(folder))).dump(str(config))
        else:
            scenes = write_scenes(folder / 'scenes')
            kind, make = ('retinanet', detector_run_config) if host == 'mmdet' else ('fcn', segmentor_run_config)
            config = write_distiller_files(folder, make(kind, scenes), make(kind, scenes, width=6), 'cls|conv_seg')
        options = ['log_level=WARNING', *named(f'host_tools_{host}')]
        run_script(ROOT / 'tools/train.py', config, '--work-dir', folder / 'work', '--cfg-options', *options)
        (log,) = (folder / 'work').glob('*/vis_data/scalars.json')
        return Run(config, folder / EXISTING, log)

    return train


@pytest.mark.parametrize(('folder', 'tool', 'arguments'), COMMANDS, ids=[f'{host} {tool}' for host, tool, _ in COMMANDS])
def test_the_commands_of_the_page_do_what_they_say(
    folder: str,
    tool: str,
    arguments: str,
    runs: Callable[[str], Run],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    host = folder.lower()
    package = pytest.importorskip(host)
    if (host, Path(tool).name) == ('mmseg', 'analyze_logs.py'):
        pytest.importorskip('seaborn', reason="mmseg's analyze_logs draws with it")
    script = Path(package.__file__).parent / '.mim' / 'tools' / tool
    if not script.is_file():
        pytest.skip(f'{host} was installed without this tool')
    run = runs(host)
    for word, other in SIZES.items():
        arguments = arguments.replace(word, other)
    files = {'my_dskd_config.py': run.config, EXISTING: run.plain, 'scalars.json': run.log}
    files |= {name: tmp_path / name for name in ('pictures', 'curves.png')}
    given = [str(files.get(word, word)) for word in shlex.split(arguments)]
    given += ['--cfg-options', f'visualizer.name=browse_{host}'] if 'pictures' in arguments else []
    monkeypatch.chdir(tmp_path)  # some leave files there
    capsys.readouterr()
    run_script(script, *given)
    printed = capsys.readouterr().out
    if 'pictures' in arguments:
        found = [path for path in tmp_path.rglob('*') if path.suffix in ('.png', '.jpg')]
        assert len(found) == dict(mmpretrain=32, mmdet=4, mmseg=5)[host]
    elif 'curves.png' in arguments:
        assert (tmp_path / 'curves.png').stat().st_size > 5000
    elif 'print_config' in tool:
        assert "type='dskd_mm.DSKDDistiller'" in printed and 'student=dict(' in printed
    else:
        words = ('average iter time',) if 'cal_train_time' in arguments else ('Flops: ', 'Params: ')
        assert [word for word in words if word not in printed] == []


def test_all_of_them_are_found() -> None:
    assert len(COMMANDS) == 14 and {host for host, _, _ in COMMANDS} == {'MMPRETRAIN', 'MMDET', 'MMSEG'}
