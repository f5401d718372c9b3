"""Several processes on the CPU, started by torchrun and by the scripts in tools/.

What processes check among themselves is in many_processes.py: one start of all of them runs everything, the rows here read
what each found.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from filelock import FileLock
from many_processes import JOINED, SETTINGS, checks

from dskd_mm.testing import distiller_run_config
from dskd_mm.utils.checkpoint import load_checkpoint_file

ROOT = Path(__file__).parents[2]
WORKER = Path(__file__).with_name('many_processes.py')
needs_hosts = pytest.mark.skipif(not all(map(find_spec, ('mmpretrain', 'mmdet', 'mmseg'))), reason='a host is not installed')

Results = Callable[[int], list[dict]]


@pytest.fixture(scope='module')
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What each of a number of processes found; they are started once, whoever asks first."""
    base = tmp_path_factory.getbasetemp()
    if 'PYTEST_XDIST_WORKER' in os.environ:
        base = base.parent

    def read(world: int) -> list[dict]:
        folder = base / f'processes_{world}'
        with FileLock(f'{folder}.lock'):
            if not folder.exists():
                folder.mkdir()
                command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', f'--nproc_per_node={world}']
                with (folder / 'log').open('w') as log:
                    subprocess.run([*command, WORKER, folder], stdout=log, stderr=log, env=environment(), timeout=280)
        found = [folder / f'rank_{rank}.json' for rank in range(world)]
        assert all(path.is_file() for path in found), (folder / 'log').read_text()[-4000:]
        return [json.loads(path.read_text()) for path in found]

    return read


def environment(**variables: str) -> dict[str, str]:
    return {**os.environ, 'OMP_NUM_THREADS': '1', 'PYTHON': sys.executable, **variables}


@needs_hosts
@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ('world', 'check'), [pytest.param(world, name, id=f'{world}-{name}') for world in (2, 4) for name in checks(world)]
)
def test_processes(results: Results, world: int, check: str) -> None:
    for rank, found in enumerate(results(world)):
        assert check in found, f'rank {rank} did not get so far'
        assert found[check]['error'] is None, f'rank {rank}: {found[check]["error"]}'


def test_every_distiller_is_among_them() -> None:
    from dskd_mm import distillers

    methods = {name for name in distillers.__all__ if name.endswith('Distiller')} - {'Distiller'}
    for table in (SETTINGS, JOINED):
        assert {f'{method}Distiller' for method, _, _ in table.values()} == methods
