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

UNDEFINED_SYMBOL = (
    'Traceback (most recent call last):\n'
    'ImportError: mmcv/_ext.cpython-311-x86_64-linux-gnu.so: undefined symbol: _ZN3c10'
)


def interpreter(version=(3, 11), makes_venvs=True, header=os.devnull):
    return install.Interpreter(f'/bin/python{version[1]}', version, makes_venvs, str(header))


def assert_says(error, *words):
    """One or two sentences for a person: no traceback, and the way on."""
    for word in words:
        assert word in str(error), f'{word!r} is not in: {error}'
    assert 'Traceback' not in str(error)
    assert '\n' not in str(error)


# --- what the machine offers -------------------------------------------------------------------


@pytest.mark.parametrize(
    ('stack', 'pythons', 'words'),
    [
        (install.CURRENT, {}, ['3.10, 3.11 or 3.12 is needed', 'no Python', "'make env PYTHON="]),
        (install.CURRENT, {'python3': interpreter((3, 13))}, ['needed', 'python3.13 (/bin/python13)']),
        (install.CURRENT, {'python3': interpreter((3, 8))}, ['is needed', 'python3.8']),
        (install.CURRENT, {'python3': interpreter(makes_venvs=False)}, ['ensurepip', 'python3.11-venv', 'again']),
        (
            install.LEGACY,
            {'python3': interpreter((3, 11))},
            ['Python 3.10 is needed', 'python3.11', "'make env-legacy LEGACY_PYTHON=/path/to/python3.10'"],
        ),
    ],
)
def test_no_usable_python(stack, pythons, words):
    with pytest.raises(install.InstallError) as error:
        install.find_interpreter(['python3', 'python3.12'], stack, pythons.get)
    assert_says(error.value, *words)


@pytest.mark.parametrize('unfit', [interpreter((3, 13)), interpreter(makes_venvs=False), None])
def test_another_python_is_taken_when_the_first_is_unfit(unfit):
    pythons = {'python3': unfit, 'python3.12': interpreter((3, 12))}
    found = install.find_interpreter(['python3', 'python3.12'], install.CURRENT, pythons.get)
    assert found.version == (3, 12)


def test_probe_knows_this_python_and_refuses_what_does_not_run(tmp_path):
    assert install.probe_interpreter(sys.executable).version == sys.version_info[:2]
    assert install.probe_interpreter('no-such-python') is None
    shim = tmp_path / 'python3.12'  # as pyenv leaves for versions that are not active
    shim.write_text('#!/bin/sh\nexit 127\n')
    shim.chmod(0o755)
    assert install.probe_interpreter(str(shim)) is None


def test_no_compiler():
    with pytest.raises(install.InstallError) as error:
        install.check_compiler(interpreter(), 'c++', install.CURRENT, which=lambda command: None)
    assert_says(error.value, "'c++'", 'Debian or Ubuntu: g++', 'CXX', 'make env')


def test_old_compiler(tmp_path):
    compiler = tmp_path / 'old-g++'
    compiler.write_text("#!/bin/sh\necho 'error: unrecognized option -std=c++17' >&2\nexit 1\n")
    compiler.chmod(0o755)
    with pytest.raises(install.InstallError) as error:
        install.check_compiler(interpreter(), str(compiler), install.CURRENT)
    assert_says(error.value, 'C++17', 'unrecognized option', 'g++ 9 or newer')


def test_no_python_headers(tmp_path, monkeypatch):
    monkeypatch.setattr(install, 'try_compiler', lambda compiler: None)
    python = interpreter((3, 12), header=tmp_path / 'Python.h')
    with pytest.raises(install.InstallError) as error:
        install.check_compiler(python, 'c++', install.CURRENT, which=str)
    assert_says(error.value, f'{tmp_path}/Python.h does not exist', 'python3.12-dev')


@pytest.mark.parametrize(
    ('cuda', 'environ', 'found', 'fails'),
    [
        ('', {}, (), False),
        ('13.0', {}, (), True),
        ('13.0', {}, ('nvcc',), False),
        ('13.0', {'CUDA_HOME': '/opt/cuda'}, ('/opt/cuda/bin/nvcc',), False),
        ('13.0', {'CUDA_HOME': '/gone'}, (), True),
    ],
)
def test_a_gpu_needs_nvcc(cuda, environ, found, fails):
    def check():
        install.check_cuda_compiler(cuda, environ, install.CURRENT, {path: path for path in found}.get)

    if fails:
        with pytest.raises(install.InstallError) as error:
            check()
        assert_says(error.value, 'nvcc', 'CUDA toolkit 13.0', 'CUDA_VISIBLE_DEVICES= make env')
    else:
        check()


def test_disk():
    needs = [(Path('/target'), 8 * install.GB), (Path('/tmp'), 3 * install.GB)]
    room = {Path('/target'): 9 * install.GB, Path('/tmp'): 3 * install.GB}
    install.check_disk(needs, install.CURRENT, room.__getitem__)
    room[Path('/tmp')] = install.GB // 2
    with pytest.raises(install.InstallError) as error:
        install.check_disk(needs, install.CURRENT, room.__getitem__)
    assert_says(error.value, 'about 3 GB free in /tmp', '0.5', 'TMPDIR', 'make env')


def test_child_environment_reaches_the_index_but_decides_itself_what_to_install():
    env = install.child_environment(
        {
            'HTTPS_PROXY': 'proxy',
            'MAX_JOBS': '1',
            'PIP_CERT': 'cert.pem',
            'PIP_CONSTRAINT': 'others.txt',
            'PIP_EXTRA_INDEX_URL': 'mirror',
            'PIP_TARGET': 'elsewhere',
            'PYTHONPATH': 'shadow',
        }
    )
    assert {'PIP_TARGET', 'PIP_CONSTRAINT', 'PYTHONPATH'}.isdisjoint(env)
    assert {'HTTPS_PROXY', 'PIP_CERT', 'PIP_EXTRA_INDEX_URL'} <= env.keys()
    assert env['MAX_JOBS'] == '1'
    assert int(install.child_environment({})['MAX_JOBS']) >= 1


# --- what went wrong ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ('log', 'words'),
    [
        ('OSError: [Errno 28] No space left on device', 'the disk is full'),
        ('g++: fatal error: Killed signal terminated program cc1plus', 'MAX_JOBS=1 make env'),
        ('NewConnectionError: Temporary failure in name resolution', 'could not be reached'),
        ('pip._vendor.urllib3.exceptions.ReadTimeoutError: Read timed out.', 'Check the network'),
        ('ERROR: No matching distribution found for torch==2.11.0', 'and the pins if you changed'),
        # A network failure may end in this line as well; the cause comes first.
        ('NewConnectionError\nERROR: No matching distribution found for x', 'Check the network'),
        ('ERROR: ResolutionImpossible: for help visit', 'that constraints.txt allows'),
        ('csrc/x.cpp:1: error: no such thing\nlater words', 'no such thing'),
        ('something else.\n', "'something else'"),
        ('a dict {as: python prints it} error: x', "{as: python prints it} error: x'"),
    ],
)
def test_explain_pip(log, words):
    assert words in install.explain_pip(log, install.CURRENT)


def test_explain_pip_names_what_belongs_to_the_stack():
    assert "'MAX_JOBS=1 make env-legacy'" in install.explain_pip('out of memory', install.LEGACY)
    assert 'constraints-legacy.txt' in install.explain_pip('ResolutionImpossible', install.LEGACY)


@pytest.mark.parametrize(
    ('error', 'words'),
    [
        (UNDEFINED_SYMBOL, None),
        ("ModuleNotFoundError: No module named 'mmcv._ext'", None),
        ('ImportError: libc10_cuda.so: cannot open shared object file: No such file', None),
        ('ImportError: mmcv._ext was compiled without CUDA, and torch sees a GPU', None),
        ('ImportError: libGL.so.1: cannot open shared object file: No such file', 'libgl1'),
        ("ModuleNotFoundError: No module named 'addict'", "No module named 'addict'"),
    ],
)
def test_explain_ops(error, words):
    explained = install.explain_ops(error, install.CURRENT)
    if words is None:
        assert explained is None
    else:
        assert_says(explained, words, 'make env')


# --- the work ----------------------------------------------------------------------------------


class FakeInstaller(install.Installer):
    """Installs nothing: notes the calls of pip, and fails where told to."""

    def __init__(self, root, stack=install.CURRENT, ops_errors=(), fail_at=None):
        self.said = []
        super().__init__(stack, root=root, environ={}, say=self.said.append)
        self.calls = []
        self.ops_errors = list(ops_errors)
        self.fail_at = fail_at

    def prepare(self):
        self.python.parent.mkdir(parents=True, exist_ok=True)
        self.python.touch()
        (self.venv / 'pyvenv.cfg').write_text('version = 3.11.7\n')

    def visible_cuda(self):
        return ''

    def pip(self, name, args):
        self.calls.append(name if '--force-reinstall' not in args else f'{name} anew')
        if name == self.fail_at:
            raise install.InstallError(name)

    def check_ops(self):
        return self.ops_errors.pop(0) if self.ops_errors else None


@pytest.fixture
def repo(tmp_path):
    (tmp_path / 'tools' / 'misc').mkdir(parents=True)
    for name in ('constraints.txt', 'constraints-legacy.txt', 'setup.py', 'tools/misc/install.py'):
        shutil.copy2(ROOT / name, tmp_path / name)
    return tmp_path


def calls_of(installer):
    installer.install()
    return installer.calls


ALL_STEPS = ['tools', 'torch', 'mmcv', 'packages']


@pytest.mark.parametrize('stack', STACKS)
def test_second_run_does_nothing(repo, stack):
    assert calls_of(FakeInstaller(repo, stack)) == ALL_STEPS
    again = FakeInstaller(repo, stack)
    assert calls_of(again) == []
    assert again.said == []
    assert [folder.name for folder in repo.glob('.venv*')] == [stack.venv], 'the other stack is not touched'


@pytest.mark.parametrize('stack', STACKS)
def test_interrupted_run_goes_on_where_it_stopped(repo, stack):
    with pytest.raises(install.InstallError):
        FakeInstaller(repo, stack, fail_at='mmcv').install()
    assert calls_of(FakeInstaller(repo, stack)) == ['mmcv', 'packages']


@pytest.mark.parametrize(
    ('stack', 'name'),
    [(param.values[0], name) for param in STACKS for name in (param.values[0].constraints, 'setup.py', 'pyvenv.cfg')],
    ids=lambda value: getattr(value, 'venv', value),
)
def test_a_change_of_what_the_steps_depend_on_runs_them_again(repo, stack, name):
    FakeInstaller(repo, stack).install()
    name = f'{stack.venv}/{name}' if name == 'pyvenv.cfg' else name
    with (repo / name).open('r+') as file:
        text = file.read().replace('version = 3.11.7', 'version = 3.12.1')
        file.seek(0)
        file.write(text + '\n# changed\n')
    changed = FakeInstaller(repo, stack)
    changed.prepare = lambda: None
    assert calls_of(changed) == ALL_STEPS


def test_a_venv_whose_python_is_gone_is_made_anew(repo):
    first = FakeInstaller(repo)
    first.install()
    first.python.unlink()
    first.python.symlink_to(repo / 'removed-python')
    assert not first.is_ready()


def test_stale_operators_are_compiled_anew_once(repo):
    installer = FakeInstaller(repo, ops_errors=[UNDEFINED_SYMBOL])
    assert calls_of(installer) == ['tools', 'torch', 'mmcv', 'mmcv anew', 'packages']
    assert any('undefined symbol' in line for line in installer.said)


def test_operators_that_stay_stale_end_with_the_mend(repo):
    installer = FakeInstaller(repo, ops_errors=[UNDEFINED_SYMBOL] * 2)
    with pytest.raises(install.InstallError) as error:
        installer.install()
    assert_says(error.value, 'undefined symbol', 'Remove .venv', 'install.log')
    assert installer.calls == ['tools', 'torch', 'mmcv', 'mmcv anew']
    assert not installer.is_done(install.CURRENT.steps[2])


def test_a_missing_system_library_is_no_reason_to_compile_anew(repo):
    error = 'ImportError: libGL.so.1: cannot open shared object file: No such file or directory'
    installer = FakeInstaller(repo, ops_errors=[error])
    with pytest.raises(install.InstallError, match='libgl1'):
        installer.install()
    assert installer.calls[-1] == 'mmcv'


def installer_with_pip(repo, script, stack=install.CURRENT):
    """An installer whose environment's python is a shell script."""
    said = []
    installer = install.Installer(stack, root=repo, environ={'PATH': os.environ['PATH']}, say=said.append)
    installer.python.parent.mkdir(parents=True)
    installer.python.write_text(f'#!/bin/sh\n{script}\n')
    installer.python.chmod(0o755)
    return installer, said


@pytest.mark.parametrize('stack', STACKS)
def test_failing_pip_names_the_step_and_the_log(repo, stack):
    installer, _ = installer_with_pip(repo, 'echo NewConnectionError; exit 1', stack)
    with pytest.raises(install.InstallError) as error:
        installer.pip('torch', ('torch',))
    assert_says(error.value, "'torch' failed", 'Check the network', f"'{stack.make}'", 'install.log')
    log = installer.log.read_text()
    assert f'-m pip install -c {stack.constraints} torch' in log and 'NewConnectionError' in log


def test_a_long_step_shows_how_far_it_is(repo, monkeypatch):
    monkeypatch.setattr(install, 'HEARTBEAT_SECONDS', 0.05)
    installer, said = installer_with_pip(repo, 'echo "  [3/60] c++ a.cpp"; sleep 0.5')
    installer.pip('mmcv', ())
    assert any('3 of 60 files compiled' in line for line in said)


def run_installer(repo, *args, **environ):
    command = [sys.executable, 'tools/misc/install.py', *args]
    return subprocess.run(command, cwd=repo, env=environ, capture_output=True, text=True)


def test_no_compiler_ends_at_once_with_one_line(repo):
    """The real program, with nothing on PATH but its Python."""
    done = run_installer(repo, PATH=str(repo))
    assert done.returncode == 1
    assert done.stdout == ''
    assert done.stderr.startswith("make env: mmcv's operators are compiled at install")
    assert done.stderr.count('\n') == 1
    assert not (repo / '.venv').exists(), 'all checks come before the work'


def test_the_legacy_stack_is_chosen_with_its_python(repo):
    """The real program, offered a Python of a wrong version and nothing else."""
    old = repo / 'python3.9'
    old.write_text(f"""#!/bin/sh\necho '["{old}", [3, 9], true, "Python.h"]'\n""")
    old.chmod(0o755)
    done = run_installer(repo, '--legacy', '--python', str(old), PATH=str(repo))
    assert done.returncode == 1
    assert done.stderr.startswith('make env-legacy: Python 3.10 is needed'), done.stderr
    assert str(old) in done.stderr
    assert not (repo / '.venv-legacy').exists()


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
    names = {'cls', 'det', 'seg', 'all', 'dev', 'demo'}
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
    constraints = pins(stack.constraints)
    assert [pin for pin in constraints if not exact.fullmatch(pin)] == []
    pinned = {distribution(pin) for pin in constraints}
    extras = stack.extras.removeprefix('.[').removesuffix(']').split(',')
    wishes = [*metadata['install_requires'], *(wish for extra in extras for wish in metadata['extras_require'][extra])]
    asked = {stack.mmcv, *(distribution(wish) for wish in wishes)}
    asked |= {name for step in stack.steps[:2] for name in step.args}
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


def test_no_tracked_file_holds_an_index_host_or_a_path_of_one_machine():
    """Such things work for their writer only. (Joined here so that this file is clean too.)"""
    words = ['pypi' + '.org', 'python' + 'hosted', '/ro' + 'ot/', '/wo' + 'rk/', '/bash' + '_jobs']
    command = ['git', 'grep', '-nIF', *(part for word in words for part in ('-e', word))]
    done = subprocess.run(
        [*command, '--', '.', ':!*.svg'], cwd=ROOT, capture_output=True, text=True
    )
    if done.returncode > 1:
        pytest.skip(f'not a git checkout: {done.stderr.strip()}')
    assert done.stdout == ''
