"""Train a model, distilled or plain, from a config."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch
from mmengine.config import Config
from mmengine.runner import Runner

from dskd_mm.cli.common import (
    add_common_arguments,
    add_config_arguments,
    apply_common_arguments,
    build_runner,
    in_one_line,
    read_config,
    show_student_in,
)
from dskd_mm.hooks import CheckFiniteHook, StudentExportHook
from dskd_mm.optim import SLOW_BF16, amp_dtype
from dskd_mm.preflight import refuse_faults
from dskd_mm.resume import ResumeHook
from dskd_mm.utils.config import default_hook

AMP_WRAPPERS = {torch.float16: 'AmpOptimWrapper', torch.bfloat16: 'dskd_mm.BF16OptimWrapper', torch.float32: 'OptimWrapper'}


def parse_args(argv: Sequence[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """Parse the command line; that of the process by default."""
    parser = argparse.ArgumentParser(prog, description=__doc__)
    add_config_arguments(parser)
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        help='resume from a checkpoint; without a path, from the latest one in the work dir',
    )
    parser.add_argument('--amp', action='store_true', help='mixed precision: float16, or on CPUs bfloat16 if they have it')
    parser.add_argument(
        '--no-preflight', action='store_true', help='do not check paths, checkpoints, classes and taps before training begins'
    )
    parser.add_argument('--no-validate', action='store_true', help='do not evaluate during training')
    parser.add_argument(
        '--auto-scale-lr',
        action='store_true',
        help='scale the learning rate with the total batch size, by auto_scale_lr.base_batch_size of the config',
    )
    add_common_arguments(parser)
    return parser.parse_args(argv)


def merge_args(cfg: Config, args: argparse.Namespace) -> Config:
    """Write the command line's choices into the config; ``--cfg-options`` has the last word."""
    apply_common_arguments(cfg, args)
    if args.no_validate:
        cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    if args.amp:
        dtype = amp_dtype()
        cfg.optim_wrapper.type = AMP_WRAPPERS[dtype]
        if dtype is torch.float16:
            cfg.optim_wrapper.setdefault('loss_scale', 'dynamic')
        else:
            for key in ('loss_scale', 'dtype', 'use_fsdp'):  # of AmpOptimWrapper
                cfg.optim_wrapper.pop(key, None)
        if dtype is torch.float32:
            print(SLOW_BF16)
    begins_with = cfg.get('load_from')
    if args.resume is not None:
        cfg.resume = True
        cfg.load_from = None if args.resume == 'auto' else args.resume
    if args.auto_scale_lr:
        if 'base_batch_size' not in (cfg.get('auto_scale_lr') or {}):
            raise ValueError(
                f'--auto-scale-lr expects auto_scale_lr = dict(base_batch_size=...) in {args.config}, but there is none: '
                'add the batch size that the learning rate was chosen for.'
            )
        cfg.auto_scale_lr.enable = True
    if args.cfg_options is not None:
        cfg.merge_from_dict(args.cfg_options)
    if args.resume == 'auto' and begins_with and cfg.load_from is None and not has_checkpoint(cfg):
        cfg.load_from, cfg.resume = begins_with, False  # nothing to go on from: as without --resume
    show_student_in(cfg)
    return cfg


def has_checkpoint(cfg: Config) -> bool:
    """Return whether an earlier run of a config left a checkpoint, in its folder or in that of its CheckpointHook."""
    out_dir = default_hook(cfg, 'checkpoint').get('out_dir')
    folders = [Path(cfg.work_dir), *([Path(out_dir, Path(cfg.work_dir).name)] if out_dir else [])]
    return any(path for folder in folders for name in ('last_checkpoint', '*.pth') for path in folder.glob(name))


def add_hooks(runner: Runner) -> None:
    """Register what every training has unless its config names it: so a plain model's config stays free of dskd_mm."""
    for kind in (ResumeHook, CheckFiniteHook, StudentExportHook):
        if not any(isinstance(hook, kind) for hook in runner.hooks):
            runner.register_hook(kind())


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run the command."""
    args = parse_args(argv, prog)
    with in_one_line(prog or 'train'):
        cfg = merge_args(read_config(args), args)
    if not args.no_preflight:
        refuse_faults(cfg)
    run(cfg)


def run(cfg: Config) -> None:
    """Train by a config that has the command line's choices."""
    runner = build_runner(cfg)
    add_hooks(runner)
    runner.train()
