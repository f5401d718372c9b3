"""The installer's decisions and messages, the package's metadata, and what no file may hold."""

import importlib.util
import os
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

ROOT = Path(__file__).resolve().parents[1]

spec = importlib.util.spec_from_file_location('install', ROOT / 'tools' / 'misc' / 'install.py')
assert spec is not None and spec.loader is not None
install = importlib.util.module_from_spec(spec)
sys.modules['install'] = install  # typing.NamedTuple looks its module up
spec.loader.exec_module(install)

STACKS = [pytest.param(install.CURRENT, id='current'), pytest.param(install.LEGACY, id='legacy')]
THIS = '{}.{}'.format(*sys.version_info)


# --- the interpreter ---------------------------------------------------------------------------


def fake_python(folder, version, makes_venvs=True):
    """A command that answers the installer's question as a Python of that version does."""
    path = folder / f'python{version}'
    path.write_text(f'#!/bin/sh\necho {path}\necho {version}\necho {makes_venvs}\n')
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize(
    ('stack', 'versions', 'words'),
    [
        (install.CURRENT, [], ['3.10 or 3.11 or 3.12 with', 'no Python', "'make env PYTHON=/path/to/python3.12'"]),
        (install.CURRENT, ['3.13', '3.8'], ['is needed', 'found is 3.13 (', '3.8 (']),
        (install.LEGACY, ['3.11'], ['Python 3.10 with', '3.11 (', "'make env-legacy PYTHON=/path/to/python3.10'"]),
    ],
)
def test_a_wrong_python_is_named_with_the_mend(tmp_path, stack, versions, words):
    candidates = [fake_python(tmp_path, version) for version in versions]
    with pytest.raises(install.InstallError) as error:
        install.find_python([*candidates, 'no-such-python'], stack)
    for word in words:
        assert word in str(error.value)


def test_a_python_without_venv_is_passed_over_and_named(tmp_path):
    bare, good = fake_python(tmp_path, '3.11', makes_venvs=False), fake_python(tmp_path, '3.10')
    assert install.find_python([bare, good], install.CURRENT) == good
    with pytest.raises(install.InstallError, match=r'3.11 \(.*\) without the module venv.*python3.12-venv'):
        install.find_python([bare], install.CURRENT)


def test_this_python_is_known_and_what_does_not_run_is_passed_over(tmp_path):
    shim = tmp_path / 'python3.12'  # as pyenv leaves for versions that are not active
    shim.write_text('#!/bin/sh\nexit 127\n')
    shim.chmod(0o755)
    this = install.CURRENT._replace(pythons=[THIS])
    assert install.find_python([str(shim), sys.executable], this) == sys.executable


# --- the work ----------------------------------------------------------------------------------


class FakeInstaller(install.Installer):
    """Installs nothing: notes what it would run, and fails where told to."""

    def __init__(self, root, stack=install.CURRENT, fail_at='nothing', **options):
        super().__init__(stack, root=root, **options)
        self.calls, self.fail_at = [], fail_at

    def run(self, *args, failure):
        if self.fail_at in args:
            raise install.InstallError(failure)
        self.calls.append(' '.join(args).replace(str(self.constraints), 'PINS'))

    def check(self):
        self.calls.append('check')


@pytest.fixture
def repo(tmp_path, monkeypatch):
    """A repository whose environments are made at once, by a fake Python."""
    (tmp_path / 'tools' / 'misc').mkdir(parents=True)
    for name in ('constraints.txt', 'constraints-legacy.txt', 'setup.py', 'tools/misc/install.py'):
        shutil.copy2(ROOT / name, tmp_path / name)

    def make_venv(command, env):
        folder = Path(command[-1])
        (folder / 'bin').mkdir(parents=True, exist_ok=True)
        Path(fake_python(folder / 'bin', '3.10')).rename(folder / 'bin' / 'python')
        (folder / 'pyvenv.cfg').write_text(f'home = {command[0]}\n')

    monkeypatch.setattr(subprocess, 'check_call', make_venv)
    monkeypatch.setattr(sys, 'executable', fake_python(tmp_path, '3.10'))
    return tmp_path


def calls_of(installer):
    installer.install()
    return installer.calls


PIP = '-m pip install --no-compile -c PINS '


@pytest.mark.parametrize('stack', STACKS)
def test_mmcv_is_built_away_from_torch_and_its_operators_put_in_place(repo, stack):
    assert calls_of(FakeInstaller(repo, stack)) == [
        PIP + 'pip setuptools wheel',
        PIP + f'--no-cache-dir --no-deps --build-constraint PINS {stack.mmcv}',
        PIP + f'--no-build-isolation torch torchvision -e {stack.extras}',
        '-m dskd_mm.mmcv_ops install',
        'check',
    ]


@pytest.mark.parametrize('stack', STACKS)
def test_a_second_run_does_nothing(repo, stack):
    assert calls_of(FakeInstaller(repo, stack))
    assert calls_of(FakeInstaller(repo, stack)) == []
    assert [folder.name for folder in repo.glob('.venv*')] == [f'.venv{stack.name}'], 'the other stack is not touched'


def test_an_interrupted_run_is_repeated_in_the_same_environment(repo, capsys):
    with pytest.raises(install.InstallError, match='pip says above why'):
        FakeInstaller(repo, fail_at='torch').install()
    packages = repo / '.venv' / 'lib' / 'python3.10' / 'site-packages'
    for name in ('whole', 'half'):
        (packages / f'{name}-1.0.dist-info').mkdir(parents=True)
    (packages / 'whole-1.0.dist-info' / 'RECORD').touch()
    assert calls_of(FakeInstaller(repo))[-1] == 'check'
    # What pip did not finish is no package; it would take it for one.
    assert [path.name for path in packages.iterdir()] == ['whole-1.0.dist-info']
    assert capsys.readouterr().out.count('making .venv') == 1


@pytest.mark.parametrize('name', ['constraints.txt', 'setup.py', 'tools/misc/install.py', '.venv/pyvenv.cfg'])
def test_a_change_of_what_the_environment_depends_on_runs_it_again(repo, name):
    FakeInstaller(repo).install()
    with (repo / name).open('a') as file:
        file.write('\n# changed\n')
    assert calls_of(FakeInstaller(repo))[-1] == 'check'


@pytest.mark.parametrize('fault', ['gone', 'of another version'])
def test_an_environment_whose_python_does_not_serve_is_made_anew(repo, fault, capsys):
    FakeInstaller(repo).install()
    python = repo / '.venv' / 'bin' / 'python'
    python.unlink()
    python.symlink_to(repo / 'removed' if fault == 'gone' else fake_python(repo, '3.13'))
    (repo / 'constraints.txt').write_text('torch==2.14.1\n')
    python_before = os.readlink(python)
    assert calls_of(FakeInstaller(repo))
    assert capsys.readouterr().out.count('making .venv') == 2
    assert not python.is_symlink() or os.readlink(python) != python_before


def test_compiling_takes_the_torch_that_compiles_and_is_remembered(repo):
    calls = calls_of(FakeInstaller(repo, compiled=True))
    assert calls[-2].endswith('--force-reinstall --no-deps --no-build-isolation onedl-mmcv') and 'mmcv_ops' not in str(calls)
    pins = (repo / '.venv' / 'constraints.txt').read_text().splitlines()
    assert sorted(pin for pin in pins if pin.startswith('torch')) == ['torch==2.11.0', 'torchvision==0.26.0']
    assert calls_of(FakeInstaller(repo)) == [], 'make test after make env COMPILE=1 leaves it as it is'


def test_the_legacy_stack_does_not_compile(repo):
    with pytest.raises(install.InstallError, match=r"mmcv does not compile .*'make env-legacy'"):
        FakeInstaller(repo, install.LEGACY, compiled=True)


def with_failing_python(repo, message):
    installer = install.Installer(install.CURRENT, root=repo)
    installer.python.parent.mkdir(parents=True)
    installer.python.write_text(f'#!/bin/sh\necho Traceback\necho "ImportError: {message}"\nexit 1\n')
    installer.python.chmod(0o755)
    return installer


@pytest.mark.parametrize(
    ('message', 'mend'),
    [
        ('libGL.so.1: cannot open shared object file: No such file', 'libgl1 and libglib2.0-0'),
        ('undefined symbol: _ZN3c10', 'Remove .venv, then'),
    ],
)
def test_what_does_not_load_is_told(repo, message, mend):
    with pytest.raises(install.InstallError) as error:
        with_failing_python(repo, message).check()
    assert message in str(error.value) and mend in str(error.value) and 'Traceback' not in str(error.value)


def test_a_failing_pip_is_told_with_the_way_on(repo, capfd):
    with pytest.raises(install.InstallError, match=r"pip says above why. Mend it, then run 'make env' again: it goes on"):
        with_failing_python(repo, 'no network').pip('torch')
    assert 'no network' in capfd.readouterr().out


def test_settings_of_python_and_pip_that_would_change_what_is_installed_are_dropped(repo, monkeypatch):
    for name in ('PIP_TARGET', 'PYTHONPATH', 'PIP_INDEX_URL'):
        monkeypatch.setenv(name, 'x')
    env = FakeInstaller(repo).env
    assert {'PIP_TARGET', 'PYTHONPATH'}.isdisjoint(env) and env['PIP_INDEX_URL'] == 'x'


def test_the_program_ends_with_one_line(repo):
    """The real one, offered a Python of a wrong version and nothing else."""
    old = fake_python(repo, '3.9')
    command = [os.path.realpath(f'/proc/{os.getpid()}/exe'), 'tools/misc/install.py', '--legacy']
    shutil.copy2(old, repo / 'python3')
    for path in repo.glob('python3.1*'):
        path.unlink()
    done = subprocess.run(command, cwd=repo, env=dict(PATH=str(repo)), capture_output=True, text=True)
    if THIS in install.LEGACY.pythons:
        pytest.skip('this Python would be taken')
    assert done.returncode == 1 and done.stdout == ''
    assert done.stderr.startswith('make env-legacy: Python 3.10 with') and done.stderr.count('\n') == 1
    assert old in done.stderr and not (repo / '.venv-legacy').exists()


# --- the package -------------------------------------------------------------------------------


@pytest.fixture(scope='module')
def metadata():
    with mock.patch('setuptools.setup') as setup:
        runpy.run_path(str(ROOT / 'setup.py'))
    return setup.call_args.kwargs


def distribution(requirement):
    return re.split(r'[<>=!~;\[ ]', requirement)[0].lower()


ONEDL = {'onedl-mmengine', 'onedl-mmcv', 'onedl-mmpretrain', 'onedl-mmdetection'}
ONEDL |= {'onedl-mmsegmentation'}
OPENMMLAB = {'mmengine', 'mmcv', 'mmpretrain', 'mmdet', 'mmsegmentation'}


def test_no_host_is_a_hard_requirement(metadata):
    hard = {distribution(requirement) for requirement in metadata['install_requires']}
    assert hard.isdisjoint(ONEDL | OPENMMLAB | {'torch', 'torchvision'})


def test_extras_never_mix_the_two_distributions(metadata):
    extras = metadata['extras_require']
    names = {'cls', 'det', 'seg', 'all', 'dev', 'demo', 'docs', 'onnx'}
    names |= {f'openmmlab-{task}' for task in ('cls', 'det', 'seg', 'all')}
    assert names == set(extras)
    for extra, requirements in extras.items():
        found = {distribution(requirement) for requirement in requirements}
        assert found.isdisjoint(ONEDL if extra.startswith('openmmlab') else OPENMMLAB), extra
    assert {distribution(requirement) for requirement in extras['all']} == ONEDL


def pins(constraints):
    lines = (ROOT / constraints).read_text().splitlines()
    return [line for line in lines if line and not line.startswith('#')]


@pytest.mark.parametrize('stack', STACKS)
def test_constraints_are_exact_and_cover_what_is_installed(metadata, stack):
    exact = re.compile(r"[\w-]+==[\w.]+(; python_version (<|>=) '3\.11')?")
    constraints = pins(f'constraints{stack.name}.txt')
    assert [pin for pin in constraints if not exact.fullmatch(pin)] == []
    pinned = {distribution(pin) for pin in constraints}
    extras = stack.extras.removeprefix('.[').removesuffix(']').split(',')
    wishes = [*metadata['install_requires'], *(wish for extra in extras for wish in metadata['extras_require'][extra])]
    asked = {'pip', 'setuptools', 'wheel', 'torch', 'torchvision', stack.mmcv, *map(distribution, wishes)}
    assert asked <= pinned, f'without a pin: {sorted(asked - pinned)}'


def test_version_is_read_without_importing_the_package(metadata):
    version = runpy.run_path(str(ROOT / 'dskd_mm' / 'version.py'))['__version__']
    assert metadata['version'] == version
    command = [sys.executable, 'setup.py', '--version']
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == version


def test_a_wheel_carries_the_configs_and_leaves_the_sources_alone(tmp_path):
    before = sorted(os.listdir(ROOT / 'dskd_mm'))
    command = [sys.executable, 'setup.py', 'build_py', '--build-lib', str(tmp_path)]
    subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    mim = tmp_path / 'dskd_mm' / '.mim'
    assert (mim / 'tools' / 'misc' / 'install.py').is_file()
    assert (mim / 'model-index.yml').is_file()
    assert (mim / 'configs').is_dir() and not (mim / 'configs').is_symlink()
    assert sorted(os.listdir(ROOT / 'dskd_mm')) == before


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
    """The wheel, built from a copy of the sources and installed in a folder of its own, without an index."""
    folder = tmp_path_factory.mktemp('wheel')
    files = ('setup.py', 'pyproject.toml', 'MANIFEST.in', 'README.md', 'LICENSE', 'model-index.yml')
    for name in (*files, 'dskd_mm', 'configs', 'tools'):
        source, target = ROOT / name, folder / 'sources' / name
        target.parent.mkdir(exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns('__pycache__', '.mim'))
        else:
            shutil.copy2(source, target)
    pip = [sys.executable, '-m', 'pip', '--disable-pip-version-check']
    offline = ['--no-deps', '--no-index']
    built = [*pip, 'wheel', *offline, '--no-build-isolation', '-w', folder, folder / 'sources']
    subprocess.run(list(map(str, built)), capture_output=True, check=True, text=True)
    (wheel,) = folder.glob('*.whl')
    installing = [*pip, 'install', *offline, '--no-compile', '--target', folder / 'site', wheel]
    subprocess.run(list(map(str, installing)), capture_output=True, check=True, text=True)
    return folder / 'site'


def from_wheel(site, *command):
    """What a command prints, with the wheel alone on the path, besides what it needs."""
    env = {**os.environ, 'PYTHONPATH': str(site)}
    done = subprocess.run([str(part) for part in command], cwd=site.parent, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_the_wheel_has_all_that_is_used_without_the_sources(installed):
    code = 'import dskd_mm, dskd_mm.distillers; print(dskd_mm.__file__)'
    assert from_wheel(installed, sys.executable, '-c', code).strip() == str(installed / 'dskd_mm' / '__init__.py')
    assert (installed / 'dskd_mm' / 'py.typed').is_file()
    packages = [path.parent.relative_to(ROOT) for path in (ROOT / 'dskd_mm').rglob('__init__.py') if '.mim' not in path.parts]
    assert [str(package) for package in packages if not (installed / package / '__init__.py').is_file()] == []
    (info,) = installed.glob('dskd_mm-*.dist-info')
    text = (info / 'METADATA').read_text(encoding='utf-8')
    assert 'Project-URL: Paper' in text and 'Requires-Dist: rich' in text and 'Provides-Extra: cls' in text


def test_the_wheel_has_the_command_and_its_configs(installed):
    assert 'commands:' in from_wheel(installed, installed / 'bin' / 'dskd', '--help')
    listed = from_wheel(installed, installed / 'bin' / 'dskd', 'taps', 'dskd_mm::plain/resnet14-w32_cifar100-subset.py')
    assert 'site: ClassificationSite' in listed and 'head.fc' in listed


def test_the_wheels_configs_are_inherited_by_their_address(installed, tmp_path):
    (tmp_path / 'mine.py').write_text(
        "_base_ = 'dskd_mm::dskd/resnet8-w16_r14-w32_cifar100-subset.py'\nmodel = dict(temperature=2)\n"
    )
    printed = from_wheel(installed, installed / 'bin' / 'dskd', 'config', tmp_path / 'mine.py')
    assert 'temperature=2' in printed and f"'{installed}/dskd_mm/.mim/configs/dskd/../plain/resnet14" in printed
    tool = installed / 'dskd_mm' / '.mim' / 'tools' / 'misc' / 'check_config.py'
    checked = from_wheel(installed, sys.executable, tool, tmp_path / 'mine.py', '--skip', 'data', 'checkpoints', 'step')
    assert 'DSKDDistiller at ClassificationSite' in ' '.join(checked.split()) and ' 0 faults.' in checked


def test_the_wheel_distils_without_configs(installed):
    code = """
import torch
from torch import nn
import dskd_mm

networks = [nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)) for _ in range(2)]
loss = dskd_mm.distil(*networks, method='kd')(torch.randn(4, 3, 16, 16), torch.tensor([0, 1, 2, 0]))
print(dskd_mm.__file__, bool(loss.isfinite()))
"""
    printed = from_wheel(installed, sys.executable, '-W', 'ignore', '-c', code).split()
    assert printed == [str(installed / 'dskd_mm' / '__init__.py'), 'True']


def test_no_tracked_file_holds_an_index_host_or_a_path_of_one_machine():
    """Such things work for their writer only. (Joined here so that this file is clean too.)"""
    words = ['pypi' + '.org', 'python' + 'hosted', '/ro' + 'ot/', '/wo' + 'rk/', '/bash' + '_jobs']
    command = ['git', 'grep', '-nIF', *(part for word in words for part in ('-e', word))]
    done = subprocess.run([*command, '--', '.', ':!*.svg'], cwd=ROOT, capture_output=True, text=True)
    if done.returncode > 1:
        pytest.skip(f'not a git checkout: {done.stderr.strip()}')
    assert done.stdout == ''
