"""Builds the environment in .venv, or brings it up to date; with --legacy the one in .venv-legacy.

pip installs the versions of constraints.txt, mmcv without its compiled operators, and dskd_mm itself, editable; then
`dskd_mm.mmcv_ops` takes the operators' place, and `mmcv.ops` is loaded to see that it does. A stamp in the environment
says that all this is done: until something changes, the next run does nothing. A run that was interrupted is simply
repeated, as pip skips what is there.

Only the standard library is used, and no syntax newer than Python 3.7: this file must run under whatever `python3` is,
to say what is wrong with it.
"""

from __future__ import annotations

import argparse
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple, Sequence

ROOT = Path(__file__).resolve().parents[2]
PROBE = """
import importlib.util, sys
print(sys.executable)
print('%d.%d' % sys.version_info[:2])
print(all(importlib.util.find_spec(name) for name in ('venv', 'ensurepip')))
"""
# They would change what is installed, and where; all other settings of pip are the user's to make.
DROPPED_SETTINGS = ('PYTHONHOME', 'PYTHONPATH', 'PIP_TARGET', 'PIP_PREFIX', 'PIP_USER', 'PIP_NO_DEPS')


class InstallError(Exception):
    """What was expected, what came, and the mend, in a sentence or two."""


class Stack(NamedTuple):
    """A set of host packages that work together, and what they need."""

    name: str  # the end of the names of its environment, its constraints and the call that builds it
    pythons: Sequence[str]
    mmcv: str
    extras: str
    compiled_with: Sequence[str]  # the newest torch that compiles this mmcv; empty: not offered

    @property
    def make(self) -> str:
        return f'make env{self.name}'


CURRENT = Stack('', ('3.10', '3.11', '3.12'), 'onedl-mmcv', '.[all,dev,docs]', ('torch==2.11.0', 'torchvision==0.26.0'))
LEGACY = Stack('-legacy', ('3.10',), 'mmcv', '.[openmmlab-all,dev]', ())


def find_python(candidates: Sequence[str], stack: Stack) -> str:
    """The first supported Python among the candidates that can make a virtual environment."""
    seen = []
    for command in candidates:
        try:
            output = subprocess.check_output([command, '-I', '-c', PROBE], stderr=subprocess.DEVNULL)
            executable, version, makes_venvs = output.decode().splitlines()
        except (OSError, ValueError, subprocess.CalledProcessError):  # absent, or it does not run
            continue
        if version in stack.pythons and makes_venvs == 'True':
            return executable
        lack = ' without the module venv or ensurepip' if version in stack.pythons else ''
        seen.append(f'{version} ({executable}){lack}')
    raise InstallError(
        f'Python {" or ".join(stack.pythons)} with the module venv is needed, and what was found is '
        f'{", ".join(dict.fromkeys(seen)) or "no Python"}. Install it (Debian or Ubuntu: python{stack.pythons[-1]}-venv) '
        f"and run '{stack.make} PYTHON=/path/to/python{stack.pythons[-1]}'."
    )


class Installer:
    """Installs a stack, unless that is done.

    Args:
        stack: What is installed.
        compiled: Whether to compile mmcv's operators; an environment that has them keeps them.
        root: The repository.
    """

    def __init__(self, stack: Stack, compiled: bool = False, root: Path = ROOT) -> None:
        if compiled and not stack.compiled_with:
            raise InstallError(f"{stack.mmcv} does not compile with the torch of this stack: run '{stack.make}'.")
        self.stack, self.root = stack, root
        self.venv = root / f'.venv{stack.name}'
        self.python = self.venv / 'bin' / 'python'
        self.stamp = self.venv / 'installed'
        self.constraints = self.venv / 'constraints.txt'
        self.is_compiled = compiled or (self.venv / 'compiled').exists()
        self.env = {name: value for name, value in os.environ.items() if name not in DROPPED_SETTINGS}
        self.env.update(PYTHONNOUSERSITE='1', PIP_DISABLE_PIP_VERSION_CHECK='1')

    @property
    def pins(self) -> str:
        """The constraints, with the torch that compiles mmcv where that is asked for."""
        text = (self.root / f'constraints{self.stack.name}.txt').read_text()
        if self.is_compiled:
            text = '\n'.join([re.sub('(?m)^torch(vision)?==.*', '', text), *self.stack.compiled_with, ''])
        return text

    @property
    def key(self) -> str:
        """All that the environment depends on."""
        parts = [str(self.root), (self.venv / 'pyvenv.cfg').read_text(), self.pins]
        parts += [(self.root / name).read_text() for name in ('setup.py', 'tools/misc/install.py')]
        return hashlib.sha256('\n'.join(parts).encode()).hexdigest()

    def is_ready(self) -> bool:
        # exists() follows links: an environment whose Python was removed is none.
        return self.python.exists() and self.stamp.exists() and self.stamp.read_text() == self.key

    def install(self) -> None:
        if self.is_ready():
            return
        began = time.monotonic()
        self.make_venv()
        for info in self.venv.glob('lib/python*/site-packages/*.dist-info'):
            if not (info / 'RECORD').exists():  # pip writes it last: what was interrupted is no package yet
                shutil.rmtree(str(info))
        self.constraints.write_text(self.pins)
        self.pip('pip', 'setuptools', 'wheel')
        # Isolated from torch, mmcv is built without its operators. What is in pip's cache may have been built with them.
        self.pip('--no-cache-dir', '--no-deps', '--build-constraint', str(self.constraints), self.stack.mmcv)
        self.pip('--no-build-isolation', 'torch', 'torchvision', '-e', self.stack.extras)
        if self.is_compiled:
            self.pip('ninja', 'psutil')
            fresh = ('--no-cache-dir', '--force-reinstall', '--no-deps', '--no-build-isolation')
            self.pip('-v', *fresh, self.stack.mmcv)
        else:
            self.run('-m', 'dskd_mm.mmcv_ops', 'install', failure='Putting the operators of mmcv in place failed')
        self.check()
        self.stamp.write_text(self.key)
        print(f'{self.venv.name} is ready after {time.monotonic() - began:.0f} s', flush=True)

    def make_venv(self) -> None:
        """Makes the environment, unless there is one with a supported Python."""
        try:
            find_python([str(self.python)], self.stack)
        except InstallError:
            others = [f'python{version}' for version in reversed(self.stack.pythons)]
            python = find_python([sys.executable, 'python3', *others], self.stack)
            print(f'making {self.venv.name} with {python}', flush=True)
            # --clear: half an environment, or one whose Python is gone or not supported, is of no use.
            subprocess.check_call([python, '-I', '-m', 'venv', '--clear', str(self.venv)], env=self.env)
        if self.is_compiled:
            (self.venv / 'compiled').touch()

    def pip(self, *args: str) -> None:
        # Without compiling: Python does that for the few modules that are imported, when they are.
        command = ('-m', 'pip', 'install', '--no-compile', '-c', str(self.constraints), *args)
        self.run(*command, failure='Installing failed, pip says above why')

    def run(self, *args: str, failure: str) -> None:
        if subprocess.call([str(self.python), *args], cwd=str(self.root), env=self.env):
            raise InstallError(f"{failure}. Mend it, then run '{self.stack.make}' again: it goes on from there.")

    def check(self) -> None:
        """Imports what was installed, as it is there and not as it may lie in the working directory."""
        command = [str(self.python), '-I', '-c', 'import torchvision, mmcv.ops']
        done = subprocess.run(command, cwd=str(self.venv), env=self.env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        if done.returncode:
            said = done.stdout.decode(errors='replace').strip().splitlines() or ['']
            mend = f'Remove {self.venv.name}'
            if re.search(r'lib(GL|gthread)\S*: cannot open shared object', said[-1]):
                mend = 'Install that library (Debian or Ubuntu: libgl1 and libglib2.0-0)'
            raise InstallError(f"'import mmcv.ops' failed: {said[-1]}. {mend}, then run '{self.stack.make}' again.")


def main() -> int:
    parser = argparse.ArgumentParser(description='Builds .venv, or brings it up to date.')
    parser.add_argument('--legacy', action='store_true', help="OpenMMLab's last releases, in .venv-legacy")
    parser.add_argument('--compile', action='store_true', help="mmcv's own operators, compiled here, and an older torch")
    args = parser.parse_args()
    stack = LEGACY if args.legacy else CURRENT
    try:
        installer = Installer(stack, args.compile)
        with open(str(ROOT / 'setup.py')) as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # a second install in this folder waits for the first
            installer.install()
    except InstallError as error:
        print(f'{stack.make}: {error}', file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\n{stack.make}: interrupted; '{stack.make}' goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == '__main__':
    sys.exit(main())
