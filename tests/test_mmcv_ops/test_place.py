"""The file mmcv/_ext.py: put there, taken away, told of."""

import subprocess
import sys
from pathlib import Path

import pytest

from dskd_mm.mmcv_ops.place import LOADER, PlaceError, install, remove, report, state

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def mmcv(tmp_path) -> Path:
    """A folder as that of an mmcv without compiled operators."""
    folder = tmp_path / 'mmcv'
    (folder / 'ops').mkdir(parents=True)
    (folder / '__init__.py').write_text('')
    (folder / 'ops' / '__init__.py').write_text('')
    (folder / 'ops' / 'nms.py').write_text("ext_module = ext_loader.load_ext(\n    '_ext', ['nms', 'nms_rotated'])\n")
    return folder


def run(folder: Path, code: str) -> subprocess.CompletedProcess:
    """Run Python code with the mmcv of `folder` and this dskd_mm."""
    path = f'import sys; sys.path[:0] = [{str(folder.parent)!r}, {str(ROOT)!r}]\n'
    return subprocess.run([sys.executable, '-W', 'ignore', '-c', path + code], capture_output=True, text=True, timeout=240)


def test_install_and_remove_are_idempotent(mmcv):
    assert 'none' in report(mmcv)
    assert 'not there' in remove(mmcv)
    assert 'written' in install(mmcv)
    assert state(mmcv).file == 'current'
    before = (mmcv / '_ext.py').stat().st_mtime_ns
    assert 'already' in install(mmcv)
    assert (mmcv / '_ext.py').stat().st_mtime_ns == before
    assert report(mmcv).splitlines()[-2:] == ['provided: 1 of 2, nms', 'left out: nms_rotated']
    assert 'removed' in remove(mmcv)
    assert not list(mmcv.glob('*ext*'))


def test_a_file_of_another_version_is_renewed(mmcv):
    (mmcv / '_ext.py').write_text('from dskd_mm.mmcv_ops.ext import nms\n')
    assert 'renews' in report(mmcv)
    install(mmcv)
    assert (mmcv / '_ext.py').read_text() == LOADER.read_text()


def test_a_file_of_somebody_else_is_left_alone(mmcv):
    (mmcv / '_ext.py').write_text('nms = None\n')
    for action in (install, remove):
        with pytest.raises(PlaceError, match='not of dskd_mm'):
            action(mmcv)
    assert (mmcv / '_ext.py').read_text() == 'nms = None\n'
    assert 'not of dskd_mm' in report(mmcv)


def test_compiled_operators_are_left_alone(mmcv):
    install(mmcv)
    (mmcv / '_ext.cpython-311-x86_64-linux-gnu.so').write_bytes(b'')
    with pytest.raises(PlaceError, match='compiled operators'):
        install(mmcv)
    assert 'compiled' in report(mmcv) and 'not used' in report(mmcv)
    remove(mmcv)
    assert state(mmcv).file == 'absent'


def test_an_mmcv_without_ops_is_refused(tmp_path):
    with pytest.raises(PlaceError, match='mmcv-lite'):
        install(tmp_path)
    assert not list(tmp_path.iterdir())


def test_nothing_is_left_of_a_failed_write(mmcv, monkeypatch):
    def fail(*args):
        raise PermissionError('read-only')

    monkeypatch.setattr('os.replace', fail)
    with pytest.raises(PlaceError, match='as the user who installed mmcv'):
        install(mmcv)
    assert not list(mmcv.glob('*ext*'))


def test_what_python_compiled_comes_first(mmcv):
    """Python looks for `_ext.*.so` before `_ext.py`; an empty one cannot be loaded, but it is what Python tries."""
    install(mmcv)
    suffix = run(mmcv, 'from importlib.machinery import EXTENSION_SUFFIXES; print(EXTENSION_SUFFIXES[0])').stdout.strip()
    (mmcv / f'_ext{suffix}').write_bytes(b'')
    result = run(mmcv, 'import mmcv._ext')
    assert result.returncode and f'_ext{suffix}' in result.stderr


def test_loading_brings_neither_mmcv_nor_the_rest_of_the_package():
    code = """
import dskd_mm.mmcv_ops.ext
names = ('mmcv', 'mmengine', 'mmdet', 'mmseg', 'dskd_mm.registry', 'dskd_mm.distillers', 'dskd_mm.utils')
print([name for name in names if name in sys.modules])
"""
    result = run(ROOT, code)
    assert result.stdout.strip() == '[]', result.stderr


def test_the_loader_gives_the_operators(mmcv):
    install(mmcv)
    code = 'import mmcv._ext as e; print(e.nms.__module__, hasattr(e, "anything"), hasattr(e, "_anything"))'
    result = run(mmcv, code)
    assert result.stdout.split() == ['dskd_mm.mmcv_ops.nms', 'True', 'False'], result.stderr


def test_without_dskd_mm_the_loader_says_what_to_do(mmcv):
    install(mmcv)
    code = """
import importlib.abc
class Blocker(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] == 'dskd_mm':
            raise ModuleNotFoundError(f'No module named {name!r}', name=name)
sys.meta_path.insert(0, Blocker())
import mmcv._ext
"""
    result = run(mmcv, code)
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith('ImportError: mmcv is installed without its compiled operators')
    assert str(mmcv / '_ext.py') in last and 'Install dskd_mm' in last


def test_the_command(mmcv):
    def command(action: str) -> subprocess.CompletedProcess:
        return run(
            mmcv, f"import runpy; sys.argv = ['x', {action!r}]; runpy.run_module('dskd_mm.mmcv_ops', run_name='__main__')"
        )

    assert command('status').returncode == 0
    assert f'{mmcv / "_ext.py"} written' in command('install').stdout
    (mmcv / '_ext.py').write_text('')
    result = command('install')
    assert result.returncode == 1 and 'not of dskd_mm' in result.stderr
