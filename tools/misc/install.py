"""Builds the environment in .venv, or brings it up to date; with --legacy the one in .venv-legacy.

It installs the versions of constraints.txt in the order they need: build tools, torch, mmcv
(whose C++ operators are compiled against that torch), then the extras of setup.py and dskd_mm
itself, editable. Each step leaves a stamp in .venv and is skipped while what it depends on stays
the same, so a second run does nothing and an interrupted one goes on where it stopped. The legacy
environment holds OpenMMLab's own last releases, by constraints-legacy.txt, in the same way.

Only the standard library is used, and no syntax newer than Python 3.7: this file must run under
whatever `python3` is, to say what is wrong with it.
"""
from __future__ import annotations

import argparse
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Callable, NamedTuple, Sequence

ROOT = Path(__file__).resolve().parents[2]
GB = 1024**3
VENV_BYTES = 8 * GB  # torch with its CUDA libraries is most of it
TMP_BYTES = 3 * GB  # pip unpacks its downloads in the temporary folder
JOB_BYTES = 2 * GB  # what compiling one file of mmcv may take in memory
HEARTBEAT_SECONDS = 30

# Of pip's settings in the environment only those that tell how to reach a package index are the
# user's to make; the rest (targets, constraints, forced options) would change what gets installed.
KEPT_PIP_SETTING = re.compile(
    r'PIP_(.*INDEX.*|FIND_LINKS|.*CERT|PROXY|TRUSTED_HOST|.*CACHE.*|.*TIMEOUT|RETRIES|CONFIG_FILE'
    r'|KEYRING_PROVIDER)'
)
PYTHON_SETTINGS = ('PYTHONHOME', 'PYTHONPATH', 'PYTHONSAFEPATH')


class InstallError(Exception):
    """What was expected, what came, and the mend, in a sentence or two."""


class Interpreter(NamedTuple):
    """What the installer needs to know of a Python: `header` is where its Python.h should be."""

    executable: str
    version: tuple[int, int]
    makes_venvs: bool
    header: str

    @property
    def name(self) -> str:
        return f'python{self.version[0]}.{self.version[1]}'


class Step(NamedTuple):
    """One call of `pip install`."""

    name: str
    title: str
    args: tuple[str, ...]


class Stack(NamedTuple):
    """A set of host packages that work together, and where it gets installed."""

    make: str  # the call that builds it
    python_variable: str  # what names the interpreter in that call
    venv: str
    constraints: str
    pythons: tuple[tuple[int, int], ...]
    mmcv: str
    extras: str

    @property
    def again(self) -> str:
        return f"then run '{self.make}' again"

    @property
    def choose_python(self) -> str:
        major, minor = self.pythons[len(self.pythons) // 2]
        return f"'{self.make} {self.python_variable}=/path/to/python{major}.{minor}'"

    @property
    def mmcv_args(self) -> tuple[str, ...]:
        # --no-build-isolation: what has to be built is built with the pinned setuptools, and mmcv
        # with the torch it will run with. -v shows the compiler's progress in the log.
        return ('-v', '--no-build-isolation', self.mmcv)

    @property
    def steps(self) -> tuple[Step, ...]:
        return (
            Step(
                'tools',
                'build tools',
                ('pip', 'setuptools', 'wheel', 'ninja', 'psutil', 'packaging', 'click'),
            ),
            Step('torch', 'torch and torchvision', ('torch', 'torchvision', 'numpy')),
            Step('mmcv', 'mmcv, compiled here (about 10 minutes on 2 cores)', self.mmcv_args),
            Step(
                'packages',
                'mmpretrain, mmdet, mmsegmentation, the test tools and dskd_mm itself',
                ('--no-build-isolation', '-e', self.extras),
            ),
        )


CURRENT = Stack(
    make='make env',
    python_variable='PYTHON',
    venv='.venv',
    constraints='constraints.txt',
    pythons=((3, 10), (3, 11), (3, 12)),
    mmcv='onedl-mmcv',
    extras='.[all,dev]',
)
LEGACY = Stack(
    make='make env-legacy',
    python_variable='LEGACY_PYTHON',
    venv='.venv-legacy',
    constraints='constraints-legacy.txt',
    pythons=((3, 10),),
    mmcv='mmcv',
    extras='.[openmmlab-all,dev]',
)


# --- what the machine offers -------------------------------------------------------------------

PROBE = """
import importlib.util, json, os, sys, sysconfig
print(json.dumps([
    sys.executable,
    sys.version_info[:2],
    all(importlib.util.find_spec(name) for name in ('venv', 'ensurepip')),
    os.path.join(sysconfig.get_paths()['include'], 'Python.h'),
]))
"""


def probe_interpreter(command: str) -> Interpreter | None:
    """Asks a Python about itself; None if there is no such command or it does not run."""
    try:
        output = subprocess.check_output([command, '-I', '-c', PROBE], stderr=subprocess.DEVNULL)
        executable, version, makes_venvs, header = json.loads(output)
    except (OSError, ValueError, subprocess.CalledProcessError):
        return None
    return Interpreter(executable, (version[0], version[1]), makes_venvs, header)


def find_interpreter(
    candidates: Sequence[str],
    stack: Stack,
    probe: Callable[[str], Interpreter | None] = probe_interpreter,
) -> Interpreter:
    """The first supported Python among the candidates that can make a virtual environment."""
    seen = []
    for command in candidates:
        python = probe(command)
        if python is None:
            continue
        if python.version in stack.pythons and python.makes_venvs:
            return python
        seen.append(python)
    for python in seen:
        if python.version in stack.pythons:
            raise InstallError(
                f'{python.name} ({python.executable}) cannot make virtual environments: it lacks '
                f'the module venv or ensurepip. On Debian or Ubuntu install the package '
                f'{python.name}-venv, {stack.again}.'
            )
    found = ', '.join(f'{python.name} ({python.executable})' for python in seen)
    *others, last = [f'{major}.{minor}' for major, minor in stack.pythons]
    needed = f'{", ".join(others)} or {last}' if others else last
    raise InstallError(
        f'Python {needed} is needed, and what was found is {found or "no Python"}. '
        f'Install it and run {stack.choose_python}.'
    )


def check_compiler(
    python: Interpreter,
    compiler: str,
    stack: Stack,
    which: Callable[[str], str | None] = shutil.which,
) -> None:
    """Can mmcv's operators be compiled? Asked before the long downloads, not after."""
    # CXX may carry a launcher or flags ('ccache g++'): its first word is the command.
    if which(compiler.split()[0]) is None:
        raise InstallError(
            "mmcv's operators are compiled at install, and no C++ compiler was found (looked for "
            f"'{compiler}'). Install one (Debian or Ubuntu: g++; Fedora: gcc-c++) or name yours "
            f'in CXX, {stack.again}.'
        )
    complaint = try_compiler(compiler)
    if complaint is not None:
        raise InstallError(
            f"mmcv's operators are C++17, and '{compiler}' failed on a small C++17 program: "
            f'{complaint}. Install g++ 9 or newer, or name another compiler in CXX, {stack.again}.'
        )
    if not os.path.exists(python.header):
        raise InstallError(
            f"mmcv's operators are compiled with Python's C headers, and {python.header} does not "
            f'exist. On Debian or Ubuntu install the package {python.name}-dev, {stack.again}.'
        )


def try_compiler(compiler: str) -> str | None:
    """Compiles and links a C++17 program; returns the compiler's complaint, if any."""
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, 'try.cpp')
        source.write_text('#include <optional>\nint main() { return *std::optional<int>(0); }\n')
        return run_quietly([*compiler.split(), '-std=c++17', str(source), '-o', f'{folder}/try'])


def check_cuda_compiler(
    cuda: str,
    environ: dict[str, str],
    stack: Stack,
    which: Callable[[str], str | None] = shutil.which,
) -> None:
    """Where torch sees a GPU, mmcv compiles its CUDA operators too.

    Args:
        cuda: The CUDA version of the installed torch; empty if it sees no GPU.
        environ: The environment that mmcv is compiled in.
        stack: The stack that is being installed.
    """
    homes = [environ.get('CUDA_HOME') or environ.get('CUDA_PATH') or '/usr/local/cuda']
    if cuda and not any(which(path) for path in ['nvcc', *(f'{home}/bin/nvcc' for home in homes)]):
        raise InstallError(
            "torch sees a GPU, so mmcv's CUDA operators are compiled, and CUDA's compiler nvcc "
            f'was not found. Install the CUDA toolkit {cuda} and set CUDA_HOME, {stack.again}; or '
            f"compile for the CPU only: 'CUDA_VISIBLE_DEVICES= {stack.make}'."
        )


def check_disk(
    needs: Sequence[tuple[Path, int]],
    stack: Stack,
    free: Callable[[Path], int] = lambda folder: shutil.disk_usage(str(folder)).free,
) -> None:
    for folder, needed in needs:
        available = free(folder)
        if available < needed:
            raise InstallError(
                f'The install needs about {needed / GB:.0f} GB free in {folder}, and there are '
                f'{available / GB:.1f}. Free some (pip uses the folder TMPDIR for its downloads), '
                f'{stack.again}.'
            )


# --- what went wrong ---------------------------------------------------------------------------

PIP_PROBLEMS = (  # {make} and {constraints} are the stack's
    (
        r'No space left on device',
        'the disk is full. Free some space, or set TMPDIR to a folder with more',
    ),
    (
        r'Killed signal|fatal error: Killed|[Oo]ut of memory|Cannot allocate memory',
        "the compiler ran out of memory. Compile fewer files at once, with 'MAX_JOBS=1 {make}'",
    ),
    (
        r'NewConnectionError|NameResolutionError|ConnectTimeout|ReadTimeout|Read timed out'
        r'|ProxyError|SSLError|Connection(Reset|Refused)Error|IncompleteRead'
        r'|Temporary failure in name resolution',
        "the package index could not be reached. Check the network and pip's proxy settings",
    ),
    (
        r'No matching distribution found|ResolutionImpossible',
        "pip found no release that {constraints} allows. Check the network and pip's index "
        'settings, and the pins if you changed them',
    ),
)


def explain_pip(log: str, stack: Stack) -> str:
    """The cause of a failed call of pip and its mend, from what pip printed."""
    for pattern, cause in PIP_PROBLEMS:
        if re.search(pattern, log):
            return cause.format(make=stack.make, constraints=stack.constraints)
    errors = re.findall(r'^.*\berror:.*$', log, re.IGNORECASE | re.MULTILINE)
    return f"pip's last word was '{last_line(errors[-1] if errors else log)}'. Mend that"


OPS_CHECK = """
import torch, mmcv.ops
if torch.cuda.is_available() and mmcv.ops.get_compiling_cuda_version() == 'not available':
    raise ImportError('mmcv._ext was compiled without CUDA, and torch sees a GPU')
"""


def explain_ops(error: str, stack: Stack) -> InstallError | None:
    """Why `import mmcv.ops` failed: None if compiling mmcv anew will help, else what will."""
    missing = re.search(r'(\S+): cannot open shared object file', error)
    if missing is not None and not re.match(r'lib(c10|torch)', missing[1]):
        packages = {'libGL.so.1': 'libgl1', 'libgthread-2.0.so.0': 'libglib2.0-0'}
        return InstallError(
            f"'import mmcv.ops' needs the system library {missing[1]}, which is missing. Install "
            f'it (Debian or Ubuntu: {packages.get(missing[1], "see apt-file")}), '
            f'{stack.again}.'
        )
    # A wheel from pip's cache that was compiled for another torch, or without the operators.
    if re.search(r'undefined symbol|mmcv\._ext|libc10|libtorch', error):
        return None
    return InstallError(
        f"'import mmcv.ops' failed, and not for stale operators: {last_line(error)}. Remove "
        f'{stack.venv}, {stack.again}.'
    )


def last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].rstrip('.') if lines else 'nothing'


def run_quietly(
    command: Sequence[str], cwd: Path | None = None, env: dict[str, str] | None = None
) -> str | None:
    """Runs a command; returns what it printed if it failed, else None."""
    done = subprocess.run(
        command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    output = done.stdout.decode(errors='replace').strip()
    return None if done.returncode == 0 else output or f'exit code {done.returncode}'


def clock(seconds: float) -> str:
    return f'{seconds // 60:.0f}:{seconds % 60:02.0f}'


# --- the work ----------------------------------------------------------------------------------


def child_environment(environ: dict[str, str]) -> dict[str, str]:
    """The environment of pip and the compilers."""
    env = {
        name: value
        for name, value in environ.items()
        if name not in PYTHON_SETTINGS
        and (not name.startswith('PIP_') or KEPT_PIP_SETTING.fullmatch(name))
    }
    memory = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()
    env.setdefault('MAX_JOBS', str(max(1, min(cores or 1, memory // JOB_BYTES))))
    env.update(
        MMCV_WITH_OPS='1',
        PYTHONNOUSERSITE='1',
        PIP_DISABLE_PIP_VERSION_CHECK='1',
        PIP_NO_INPUT='1',
        PIP_PROGRESS_BAR='off',
    )
    return env


class Installer:
    """Runs the steps that are not done yet.

    Args:
        stack: What is installed.
        python: The interpreter to make the environment with, if it is of a version that the stack supports; default: the
            one that runs this.
        root: The repository.
        environ: The environment from which that of pip and the compilers is made.
        say: Prints a line.
    """

    def __init__(
        self,
        stack: Stack = CURRENT,
        python: str = sys.executable,
        root: Path = ROOT,
        environ: dict[str, str] | None = None,
        say: Callable[[str], None] = lambda line: print(line, flush=True),
    ) -> None:
        self.stack = stack
        self.base_python = python
        self.root = root
        self.env = child_environment(dict(os.environ if environ is None else environ))
        self.say = say
        self.venv = root / stack.venv
        self.python = self.venv / 'bin' / 'python'
        self.stamps = self.venv / '.install'
        self.log = self.venv / 'install.log'

    def is_ready(self) -> bool:
        return all(self.is_done(step) for step in self.stack.steps)

    def install(self) -> None:
        if self.is_ready():
            return
        began = time.monotonic()
        self.prepare()
        for number, step in enumerate(self.stack.steps, 1):
            if self.is_done(step):
                continue
            step_began = time.monotonic()
            self.say(f'[{number}/{len(self.stack.steps)}] {step.title}')
            if step.name == 'mmcv':
                self.install_mmcv()
            else:
                self.pip(step.name, step.args)
            self.mark_done(step)
            self.say(f'      done in {clock(time.monotonic() - step_began)}')
        self.say(f'{self.stack.venv} is ready after {clock(time.monotonic() - began)}')

    # Stamps

    def key(self) -> str:
        """What the steps depend on. pip is quick over what is right already: one key for all."""
        config = (self.venv / 'pyvenv.cfg').read_text()
        version = re.search(r'^version\s*=\s*(\S+)', config, re.MULTILINE)
        parts = [version[1] if version else config, str(self.root), repr(self.stack.steps)]
        parts += [(self.root / name).read_text() for name in (self.stack.constraints, 'setup.py')]
        return hashlib.sha256('\n'.join(parts).encode()).hexdigest()

    def is_done(self, step: Step) -> bool:
        stamp = self.stamps / step.name
        # exists() follows links: a .venv whose Python was removed is no environment.
        return self.python.exists() and stamp.exists() and stamp.read_text() == self.key()

    def mark_done(self, step: Step) -> None:
        self.stamps.mkdir(exist_ok=True)
        (self.stamps / step.name).write_text(self.key())

    # Steps

    def prepare(self) -> None:
        """Looks for all that the long steps need, then makes the environment unless there is one."""
        stack = self.stack
        python = probe_interpreter(str(self.python))
        usable = python is not None and python.version in stack.pythons and self.has('pip')
        if python is None or not usable:
            names = [f'python{major}.{minor}' for major, minor in reversed(stack.pythons)]
            python = find_interpreter([self.base_python, 'python3', *names], stack)
        if not self.has(stack.mmcv):
            check_compiler(python, self.env.get('CXX') or 'c++', stack)
        if not self.has('torch'):
            check_disk([(self.root, VENV_BYTES), (Path(tempfile.gettempdir()), TMP_BYTES)], stack)
        if not usable:
            self.say(f'making {stack.venv} with {python.name} ({python.executable})')
            # --clear: half an environment, or one whose Python is gone, is of no use.
            command = [python.executable, '-m', 'venv', '--clear', str(self.venv)]
            complaint = run_quietly(command, env=self.env)
            if complaint is not None:
                raise InstallError(
                    f'Making {stack.venv} with {python.executable} failed: {last_line(complaint)}. '
                    f'Name another Python: {stack.choose_python}.'
                )

    def has(self, distribution: str) -> bool:
        pattern = f'lib/python*/site-packages/{distribution.replace("-", "_")}-*.dist-info'
        return any(self.venv.glob(pattern))

    def install_mmcv(self) -> None:
        """Installs mmcv and checks its operators; compiles them anew, once, if they are stale."""
        if not self.has(self.stack.mmcv):
            check_cuda_compiler(self.visible_cuda(), self.env, self.stack)
        self.pip('mmcv', self.stack.mmcv_args)
        error = self.check_ops()
        if error is None:
            return
        other_cause = explain_ops(error, self.stack)
        if other_cause is not None:
            raise other_cause
        self.say(f'      mmcv does not fit the installed torch: {last_line(error)}')
        self.say('      compiling it anew')
        fresh = ('--no-cache-dir', '--force-reinstall', '--no-deps')
        self.pip('mmcv', (*fresh, *self.stack.mmcv_args))
        error = self.check_ops()
        if error is not None:
            raise InstallError(
                "mmcv was compiled anew for the installed torch, and 'import mmcv.ops' still "
                f'fails: {last_line(error)}. Remove {self.stack.venv} and unset CC, CXX, CFLAGS and '
                f'LDFLAGS, {self.stack.again}; the full log is {self.log}.'
            )

    def check_ops(self) -> str | None:
        """Returns what `import mmcv.ops` printed if it failed."""
        # -I and another folder: only what is installed in .venv may answer to these names.
        return run_quietly([str(self.python), '-I', '-c', OPS_CHECK], self.venv, self.env)

    def visible_cuda(self) -> str:
        script = 'import torch; print(torch.version.cuda if torch.cuda.is_available() else "")'
        command = [str(self.python), '-I', '-c', script]
        return subprocess.check_output(command, cwd=self.venv, env=self.env).decode().strip()

    def pip(self, name: str, args: Sequence[str]) -> None:
        """Runs `pip install` with its output in the log, and a sign of life from time to time."""
        command = [str(self.python), '-m', 'pip', 'install', '-c', self.stack.constraints, *args]
        began = time.monotonic()
        with self.log.open('a+b') as log:
            log.write(f'\n== {time.ctime()}: {" ".join(command)}\n'.encode())
            log.flush()
            start = log.tell()
            process = subprocess.Popen(
                command,
                cwd=self.root,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
            try:
                while not finished(process):
                    state = progress(self.output(start))
                    self.say(f'      {clock(time.monotonic() - began)} {state}')
            except BaseException:
                process.terminate()
                process.wait()
                raise
        if process.returncode != 0:
            raise InstallError(
                f"The step '{name}' failed: {explain_pip(self.output(start), self.stack)}, "
                f'{self.stack.again}; the full log is {self.log}.'
            )

    def output(self, start: int) -> str:
        return self.log.read_bytes()[start:].decode(errors='replace')


def finished(process: subprocess.Popen) -> bool:
    try:
        process.wait(HEARTBEAT_SECONDS)
    except subprocess.TimeoutExpired:
        return False
    return True


def progress(log: str) -> str:
    """Where pip is: the compiled files so far, or its last line."""
    compiled = re.findall(r'^\s*\[(\d+)/(\d+)\]', log, re.MULTILINE)
    if compiled:
        return '{} of {} files compiled'.format(*compiled[-1])
    return last_line(log)[:80]


def main() -> int:
    parser = argparse.ArgumentParser(description='Builds .venv, or brings it up to date.')
    parser.add_argument('--legacy', action='store_true', help="OpenMMLab's last releases, in .venv-legacy")
    parser.add_argument('--python', default=sys.executable, help='the interpreter of the environment; default: this one')
    args = parser.parse_args()
    stack = LEGACY if args.legacy else CURRENT
    installer = Installer(stack, args.python)
    if installer.is_ready():
        return 0
    lock = os.open(str(ROOT), os.O_RDONLY)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            print('waiting for another install in this folder', flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        installer.install()
    except InstallError as error:
        print(f'{stack.make}: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\n{stack.make}: interrupted; '{stack.make}' goes on from this step", file=sys.stderr)
        return 130
    return 0


if __name__ == '__main__':
    sys.exit(main())
