"""Puts the file `mmcv/_ext.py`, takes it away and tells what is there; mmcv itself is not imported."""

import ast
import os
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

LOADER = Path(__file__).with_name('loader.py')
NAME = '_ext.py'


class PlaceError(Exception):
    """Why the file cannot be put there or taken away."""


class State(NamedTuple):
    """What mmcv takes its operators from."""

    folder: Path
    compiled: tuple[Path, ...]  # compiled modules, of which Python takes the one that fits before any file of ours
    file: str  # of mmcv/_ext.py: 'absent', 'current', 'outdated' (ours, of another version) or 'foreign'

    @property
    def path(self) -> Path:
        return self.folder / NAME


def mmcv_folder() -> Path:
    """Return the folder of the installed mmcv.

    Raises:
        PlaceError: If there is none.
    """
    spec = find_spec('mmcv')
    if spec is None or not spec.submodule_search_locations:
        raise PlaceError('mmcv is not installed in this environment; install it first: pip install onedl-mmcv.')
    return Path(next(iter(spec.submodule_search_locations)))


def state(folder: Path | None = None) -> State:
    """Return what there is in `folder`, by default that of the installed mmcv."""
    folder = folder or mmcv_folder()
    compiled = tuple(sorted(path for path in folder.glob('_ext.*') if path.suffix in ('.so', '.pyd', '.dylib')))
    path = folder / NAME
    if not path.exists():
        file = 'absent'
    else:
        text = path.read_text(encoding='utf-8', errors='replace')
        ours = 'dskd_mm.mmcv_ops' in text
        file = 'current' if text == LOADER.read_text(encoding='utf-8') else 'outdated' if ours else 'foreign'
    return State(folder, compiled, file)


def install(folder: Path | None = None) -> str:
    """Put the file there unless it is; return what was done.

    Raises:
        PlaceError: If mmcv is not installed, has compiled operators or a module `_ext` of somebody else, or if the folder
            cannot be written to.
    """
    now = state(folder)
    if now.compiled:
        raise PlaceError(
            f'This mmcv has compiled operators ({now.compiled[0]}), which are used; nothing was put there. To replace them, '
            'install mmcv without compiling: pip uninstall it, then pip install onedl-mmcv with build isolation.'
        )
    if now.file == 'foreign':
        raise PlaceError(f'{now.path} is not of dskd_mm and was left as it is; move it away, then run this again.')
    if not (now.folder / 'ops').is_dir():
        raise PlaceError(
            f'{now.folder} has no folder ops: it is an mmcv-lite, or what an uninstalled mmcv left. Install onedl-mmcv (of '
            "OpenMMLab's own releases, mmcv) in its place, then run this again."
        )
    if now.file == 'current':
        return f'{now.path} is there already.'
    write(now.path)
    return f'{now.path} written: mmcv takes its operators from dskd_mm.'


def write(path: Path) -> None:
    """Write the loader in one step: a process that imports mmcv meanwhile sees all of it or nothing."""
    try:
        handle, draft = tempfile.mkstemp(dir=path.parent, prefix='.dskd_mm_ext_')
        try:
            with os.fdopen(handle, 'wb') as file:
                file.write(LOADER.read_bytes())
            os.chmod(draft, 0o644)
            os.replace(draft, path)
        except BaseException:
            os.unlink(draft)
            raise
    except OSError as error:
        raise PlaceError(f'{path} cannot be written ({error}); run this as the user who installed mmcv.') from error


def remove(folder: Path | None = None) -> str:
    """Take the file away if it is there; return what was done.

    Raises:
        PlaceError: If the file is not of dskd_mm, or mmcv is not installed, or the folder cannot be written to.
    """
    now = state(folder)
    if now.file == 'absent':
        return f'{now.path} is not there.'
    if now.file == 'foreign':
        raise PlaceError(f'{now.path} is not of dskd_mm and was left as it is.')
    try:
        now.path.unlink()
    except OSError as error:
        raise PlaceError(f'{now.path} cannot be removed ({error}); run this as the user who installed mmcv.') from error
    return f'{now.path} removed.'


def wanted(folder: Path) -> set[str]:
    """Return the names of all operators that the modules of `mmcv.ops` ask for, read from their source."""
    names: set[str] = set()
    for path in (folder / 'ops').glob('*.py'):
        for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == 'load_ext':
                names.update(ast.literal_eval(node.args[1]))
    return names


def report(folder: Path | None = None) -> str:
    """Return in a few lines what mmcv takes its operators from."""
    now = state(folder)
    lines = [f'mmcv: {now.folder}']
    if now.compiled:
        lines.append(f'operators: compiled, {now.compiled[0].name}')
        if now.file in ('current', 'outdated'):
            lines.append(f'{NAME} of dskd_mm is there, too, and not used; `remove` takes it away')
        return '\n'.join(lines)
    lines.append('operators: ' + OPERATORS[now.file])
    if now.file in ('current', 'outdated'):
        from dskd_mm.mmcv_ops import ext

        names = wanted(now.folder)
        missing = sorted(names - set(ext.__all__))
        lines.append(f'provided: {len(names) - len(missing)} of {len(names)}, {", ".join(sorted(names & set(ext.__all__)))}')
        lines.append(f'left out: {", ".join(missing)}')
    return '\n'.join(lines)


OPERATORS = {
    'absent': 'none, `import mmcv.ops` fails; run `python -m dskd_mm.mmcv_ops install`',
    'current': 'of dskd_mm',
    'outdated': 'of dskd_mm, by a file of another version; `install` renews it',
    'foreign': f'of a file {NAME} that is not of dskd_mm',
}
