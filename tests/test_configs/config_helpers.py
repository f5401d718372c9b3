"""What the tests of configs share."""

import copy
import functools
import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config

from dskd_mm.utils.methods import apply_method

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted((ROOT / 'configs').rglob('*.py'))
PLAIN = sorted((ROOT / 'configs/plain').glob('*.py'))
PAIRS = sorted((ROOT / 'configs/dskd').glob('*.py'))
DEMO = sorted((ROOT / 'examples/digits/configs').glob('*.py'))
# Sized for CPUs, with data and teachers of this repository; all others are for public data sets and GPUs.
CPU_SIZED = re.compile(r'subset|fashion-mnist|bccd|dsb2018')
FULL_SIZE = [path for path in PAIRS if not CPU_SIZED.search(path.stem)]
METHODS = sorted(path.stem for path in (ROOT / 'configs/methods').glob('*.py'))
HOSTS = ('mmpretrain', 'mmdet', 'mmseg')


def teaches(path: Path) -> bool:
    """Whether a config is that of a distiller."""
    return 'teacher=' in path.read_text(encoding='utf-8')


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT)).removeprefix('configs/')


def is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):  # made unimportable
        return False


def skip_without(package: str) -> None:
    if not is_installed(package):
        pytest.skip(f'{package} is not installed')


def load(path: Path, method: str = 'dskd') -> Config:
    """Load a config of the repository; skip if the host whose configs it inherits is not installed."""
    for package in inherited_packages(path):
        skip_without(package)
    return copy.deepcopy(read(path)) if method == 'dskd' else apply_method(read(path), method)


@functools.lru_cache
def read(path: Path) -> Config:
    return Config.fromfile(path)


def inherited_packages(path: Path) -> set[str]:
    """Packages whose configs a config inherits, through bases of its own, too."""
    found = set()
    for base in Config._get_base_files(str(path)):
        found |= {base.partition('::')[0]} if '::' in base else inherited_packages(path.parent / base)
    return found


def strings(config: Any) -> Iterator[str]:
    """All strings in a config."""
    if isinstance(config, str):
        yield config
    elif isinstance(config, dict):
        yield from strings(list(config.values()))
    elif isinstance(config, (list, tuple)):
        for child in config:
            yield from strings(child)
