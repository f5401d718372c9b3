"""Several processes on the CPU, forked from one and started by the scripts in tools/, which use torchrun.

What processes check among themselves is in many_processes.py: one start of all of them runs everything, the rows here read
what each found.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from filelock import FileLock
from many_processes import JOINED, SETTINGS, checks

from dskd_mm.utils.checkpoint import load_checkpoint_file
from support import distiller_run_config, environment, free_port

ROOT = Path(__file__).parents[2]
WORKER = Path(__file__).with_name('many_processes.py')
needs_hosts = pytest.mark.skipif(not all(map(find_spec, ('mmpretrain', 'mmdet', 'mmseg'))), reason='a host is not installed')

Results = Callable[[int], list[dict]]


@pytest.fixture(scope='module')
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """What each of a number of processes found; they are started once, by whichever worker comes first."""
    base = tmp_path_factory.getbasetemp()
    if 'PYTEST_XDIST_WORKER' in os.environ:
        base = base.parent

    folder = base / 'processes'
    with FileLock(f'{folder}.lock'):
        if not folder.exists():
            folder.mkdir()
            with (folder / 'log').open('w') as log:
                command = [sys.executable, WORKER, folder, '--processes', '2', '4']
                subprocess.run(command, stdout=log, stderr=log, env=environment())

    def read(world: int) -> list[dict]:
        found = [folder / f'rank_{rank}_of_{world}.json' for rank in range(world)]
        assert all(path.is_file() for path in found), (folder / 'log').read_text()[-4000:]
        return [json.loads(path.read_text()) for path in found]

    return read


@needs_hosts
@pytest.mark.parametrize(
    ('world', 'check'),
    [pytest.param(world, name, id=f'{world}-{name}') for world in (2, 4) for name in checks(everything=world == 2)],
)
def test_processes(results: Results, world: int, check: str) -> None:
    for rank, found in enumerate(results(world)):
        assert check in found, f'rank {rank} did not get so far'
        if (found[check]['error'] or '').startswith('impossible'):
            pytest.skip(found[check]['error'])
        assert found[check]['error'] is None, f'rank {rank}: {found[check]["error"]}'


def test_every_distiller_is_among_them() -> None:
    from dskd_mm import distillers

    methods = {name for name in distillers.__all__ if name.endswith('Distiller')} - {'Distiller'}
    for table in (SETTINGS, JOINED):
        assert {f'{method}Distiller' for method, _, _ in table.values()} == methods


# -------------------------------------------------------------------------------------------------- scripts in tools/

DYING = '''
import os

from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class DyingHook(Hook):
    """Kills the second process in the sixth iteration, if the environment says so."""

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if os.environ.get('DIES') and os.environ['RANK'] == '1' and runner.iter == 5:
            os.kill(os.getpid(), signal.SIGKILL)
'''
SRUN = """#!/usr/bin/env bash
# Stands for Slurm's: notes its options and starts the tasks on this machine.
printf '%s\\n' "$@" > "$SRUN_LOG"
while [[ "$1" == -* ]]; do
    case "$1" in
        -p) shift ;;
        --ntasks=*) tasks="${1#*=}" ;;
    esac
    shift
done
for ((i = 0; i < tasks; i++)); do
    SLURM_PROCID=$i SLURM_LOCALID=$i SLURM_NTASKS=$tasks SLURM_NODELIST='node[1-2]' "$@" & pids+=($!)
done
for pid in "${pids[@]}"; do wait "$pid" || exit $?; done
"""
ECHO = '#!/usr/bin/env bash\nprintf \'%s\\n\' "$@"\n'


def script(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    path.chmod(0o755)
    return path


def run_tool(name: str, *arguments: object, **variables: str) -> subprocess.CompletedProcess:
    command = ['bash', str(ROOT / 'tools' / name), *map(str, arguments)]
    return subprocess.run(command, env=environment(**variables), capture_output=True, text=True)


@pytest.fixture(scope='module')
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A config on disk: 2 epochs of 4 iterations of two processes, of which the second may be told to die."""
    folder = tmp_path_factory.mktemp('tools')
    (folder / 'dying.py').write_text(DYING)
    cfg = distiller_run_config(str(folder), lsh=dict(bits=64))
    cfg.custom_imports.imports.append('dying')
    cfg.custom_hooks = [dict(type='DyingHook')]
    cfg.train_dataloader.batch_size = 4
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    cfg.default_hooks.checkpoint.save_best = None
    cfg.log_level = 'INFO'
    path = folder / 'config.py'
    cfg.dump(path)
    return path


@needs_hosts
def test_a_process_that_dies_ends_the_job_and_slurm_goes_on(config: Path, tmp_path: Path) -> None:
    paths = dict(PYTHONPATH=f'{config.parent}:{ROOT}')
    died = run_tool('dist_train.sh', config, 2, '--work-dir', tmp_path, **paths, PORT=free_port(), DIES='1')
    assert died.returncode != 0
    assert 'SIGKILL' in died.stderr and 'rank      : 1' in died.stderr
    # What was saved before is whole, and there is nothing else.
    assert {path.name for path in tmp_path.glob('*.pth*')} == {'epoch_1.pth', 'student_last.pth'}
    first = load_checkpoint_file(str(tmp_path / 'epoch_1.pth'))
    assert first['meta']['iter'] == 4 and int(first['state_dict']['iteration']) == 4

    tools = tmp_path / 'bin'
    tools.mkdir()
    script(tools, 'srun', SRUN)
    script(tools, 'scontrol', '#!/usr/bin/env bash\n[ "$*" = "show hostnames node[1-2]" ] && echo 127.0.0.1\n')
    log = tmp_path / 'log'
    slurm = dict(PATH=f'{tools}:{os.environ["PATH"]}', SRUN_LOG=str(log), GPUS='2', MASTER_PORT=free_port())
    resumed = run_tool('slurm_train.sh', 'gpus', 'job', config, tmp_path, '--resume', **paths, **slurm)
    assert resumed.returncode == 0, resumed.stderr[-3000:]
    options = '-p gpus --job-name=job --gres=gpu:2 --ntasks=2 --ntasks-per-node=2 --cpus-per-task=5 --kill-on-bad-exit=1'
    assert log.read_text().splitlines()[:8] == options.split()
    last = load_checkpoint_file(str(tmp_path / 'epoch_2.pth'))
    assert last['meta']['iter'] == 8 and int(last['state_dict']['iteration']) == 8


@pytest.mark.parametrize('name', ['dist_train.sh', 'dist_test.sh'])
def test_several_hosts(tmp_path: Path, name: str) -> None:
    fake = script(tmp_path, 'python', ECHO)
    files = ['config.py'] if 'train' in name else ['config.py', 'model.pth']
    hosts = dict(NNODES='3', NODE_RANK='2', MASTER_ADDR='10.0.0.7', PORT='1234')
    done = run_tool(name, *files, 8, '--cfg-options', 'a=[1,2]', 'b="x y"', **hosts, PYTHON=str(fake))
    tool = str(ROOT / 'tools' / name.replace('dist_', '').replace('.sh', '.py'))
    assert done.stdout.splitlines() == [
        *('-m', 'torch.distributed.run', '--nnodes=3', '--node_rank=2', '--master_addr=10.0.0.7', '--master_port=1234'),
        *('--nproc_per_node=8', tool, *files, '--launcher', 'pytorch', '--cfg-options', 'a=[1,2]', 'b="x y"'),
    ]
