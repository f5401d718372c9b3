"""What all tests share: the folder ``support``, also in processes that tests start, and no formatting of configs."""

import functools
import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
os.environ['PYTHONPATH'] = os.pathsep.join(filter(None, [str(TESTS), str(TESTS.parent), os.environ.get('PYTHONPATH')]))
pytest.register_assert_rewrite('support', 'dskd_mm.testing')


def pytest_collection_finish() -> None:
    """Spare the garbage collector what has been imported: each of mmengine's data sets calls it, for a third of a second."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope='session', autouse=True)
def _no_formatting() -> Iterator[None]:
    """Skip what takes longer than toy runs: the runner lays out the text of its config each time it prints it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('yapf.yapflib.yapf_api.FormatCode', lambda text, **options: (text, True))
        yield


@pytest.fixture(scope='session', autouse=True)
def _metafiles_read_once() -> Iterator[None]:
    """Parse a host's metafiles once: mmengine reads all hundred of them for every base like ``mmdet::...``."""
    from mmengine.config import utils

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(utils, 'load', functools.cache(utils.load))
        yield


@pytest.fixture(scope='session', autouse=True)
def _checkpoints_of_the_last_mmengine() -> None:
    """Do what a script of one's own has to: mmengine 0.10.7 does not read its own checkpoints with torch 2.6 or newer."""
    import mmengine

    from dskd_mm.utils.checkpoint import load_safely_everywhere

    if mmengine.__version__ == '0.10.7':
        load_safely_everywhere()
