"""What the commands share: arguments, processes and the runner."""

import argparse
import os
import os.path as osp
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from mmengine.config import Config, ConfigDict, DictAction
from mmengine.device import get_device
from mmengine.dist import is_distributed
from mmengine.registry import RUNNERS
from mmengine.runner import Runner

from dskd_mm.utils.checkpoint import load_safely_everywhere
from dskd_mm.utils.config import is_distiller_config, resolve_config_path, show_student
from dskd_mm.utils.methods import apply_method


@contextmanager
def in_one_line(prog: str) -> Iterator[None]:
    """End a command with a line instead of a traceback where a file or a setting is wrong.

    Args:
        prog (str): The command, with which the line begins.
    """
    try:
        yield
    except (OSError, ValueError, ImportError) as error:
        raise SystemExit(f'{prog}: {error}') from error


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that :func:`read_config` reads."""
    parser.add_argument('config', help='path of the config, or package::path of one that a package ships')
    parser.add_argument(
        '--method', help='distil by another method than DSKD: a name in configs/methods, or the path of a file of your own'
    )


def read_config(args: argparse.Namespace) -> Config:
    """Return the config that the command line names, with the method that it names; ``--cfg-options`` are left to the tool."""
    cfg = Config.fromfile(resolve_config_path(args.config))
    return cfg if args.method is None else apply_method(cfg, args.method)


def show_student_in(cfg: Config) -> None:
    """Let the optimizer's constructor of a distiller's config find the student's parameters by their names."""
    if is_distiller_config(cfg) and (cfg.get('optim_wrapper') or {}).get('constructor'):
        cfg.optim_wrapper = show_student(cfg.optim_wrapper)


def add_common_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that training and testing have in common."""
    parser.add_argument('--work-dir', help='folder for logs and results; default: work_dirs/<name of the config>[_<method>]')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        help="override settings of the config: key=value pairs, lists as key=a,b or key='[a,b]' without spaces",
    )
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none', help='job launcher')
    # torch.distributed.launch passes --local_rank, newer versions --local-rank; torchrun sets the variable itself.
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)


def apply_common_arguments(cfg: Config, args: argparse.Namespace) -> None:
    """Write the common choices into the config; the work dir is the command line's, else the config's, else named after it."""
    os.environ.setdefault('LOCAL_RANK', str(args.local_rank))
    cfg.launcher = args.launcher
    if args.work_dir is not None:
        cfg.work_dir = args.work_dir
    elif cfg.get('work_dir') is None:
        names = [Path(name).stem for name in (args.config, args.method) if name is not None]
        cfg.work_dir = osp.join('work_dirs', '_'.join(names))


def build_runner(cfg: Config) -> Runner:
    """Build the runner, on CPUs with several processes, too.

    Raises:
        ValueError: If several processes are started on CPUs by another launcher than torchrun or Slurm.
    """
    if cfg.get('launcher', 'none') != 'none' and get_device() == 'cpu':
        _prepare_cpu_processes(cfg)
    load_safely_everywhere()
    return RUNNERS.build(cfg) if 'runner_type' in cfg else Runner.from_cfg(cfg)


def _prepare_cpu_processes(cfg: Config) -> None:
    # mmengine selects a CUDA device whatever the backend is and passes it on to DDP; without an accelerator both fail.
    if cfg.launcher not in ('pytorch', 'slurm'):
        raise ValueError(
            "Without an accelerator several processes need launcher='pytorch' (torchrun, tools/dist_train.sh) or 'slurm' "
            f'(tools/slurm_train.sh), but got {cfg.launcher!r}.'
        )
    if cfg.launcher == 'slurm':
        # As mmengine does, but for the choice of a GPU.
        names = dict(RANK='SLURM_PROCID', LOCAL_RANK='SLURM_LOCALID', WORLD_SIZE='SLURM_NTASKS')
        os.environ.update({name: os.environ[theirs] for name, theirs in names.items()})
        os.environ.setdefault('MASTER_PORT', '29500')
        if 'MASTER_ADDR' not in os.environ:
            hosts = subprocess.run(
                ['scontrol', 'show', 'hostnames', os.environ['SLURM_NODELIST']], capture_output=True, text=True, check=True
            )
            os.environ['MASTER_ADDR'] = hosts.stdout.split()[0]
    if not is_distributed():
        torch.distributed.init_process_group('gloo')
    wrapper = dict(
        type='MMDistributedDataParallel',
        broadcast_buffers=False,
        find_unused_parameters=cfg.get('find_unused_parameters', False),
    )
    cfg.model_wrapper_cfg = ConfigDict({**wrapper, **(cfg.get('model_wrapper_cfg') or {}), 'device_ids': None})
