"""Test a student: a distiller's checkpoint or a plain one, with a distiller's config or a plain one.

Of a distiller's config the student alone is built. The teacher is neither built nor read: its files may be gone.
"""

import argparse
import copy
from collections.abc import Sequence
from typing import Any

import mmengine
import torch
from mmengine.config import Config, ConfigDict
from mmengine.dist import is_main_process
from mmengine.evaluator import DumpResults
from mmengine.model import BaseTTAModel, is_model_wrapper
from torch import nn

from dskd_mm.cli.common import (
    add_common_arguments,
    add_config_arguments,
    apply_common_arguments,
    build_runner,
    in_one_line,
    read_config,
)
from dskd_mm.optim import SLOW_BF16, amp_dtype
from dskd_mm.utils.checkpoint import load_plain_model
from dskd_mm.utils.config import datasets, default_hook, host_of, student_config, type_name

METRIC_FILES = ('.json', '.yaml', '.yml', '.pkl', '.pickle')
"""What mmengine writes numbers to."""
# How the hosts' hooks that draw predictions are switched on, and where they take the folder from.
DRAWING_HOOKS = {
    'VisualizationHook': ('enable', 'out_dir'),
    'DetVisualizationHook': ('draw', 'test_out_dir'),
    'SegVisualizationHook': ('draw', None),
}

TTA_MODELS: dict[str, dict[str, Any]] = dict(
    mmpretrain=dict(type='AverageClsScoreTTA', _scope_='mmpretrain'),
    mmdet=dict(type='DetTTAModel', _scope_='mmdet', tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.5), max_per_img=100)),
    mmseg=dict(type='SegTTAModel', _scope_='mmseg'),
)
"""What merges the predictions for an image and its mirror image, by the host, where a config names nothing."""


def parse_args(argv: Sequence[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """Parse the command line; that of the process by default."""
    parser = argparse.ArgumentParser(prog, description=__doc__)
    add_config_arguments(parser)
    parser.add_argument('checkpoint', help='checkpoint of the distiller or of the plain student')
    parser.add_argument('--out', help='file for predictions (.pkl) or metrics (.json, .yaml, .pkl)')
    parser.add_argument('--out-item', choices=['pred', 'metrics'], help='what to write to --out; default: pred')
    parser.add_argument('--show', action='store_true', help='show predictions in a window')
    parser.add_argument('--show-dir', help='folder for pictures of the predictions')
    parser.add_argument('--wait-time', type=float, default=2, help='seconds that a window stays; default: 2')
    parser.add_argument('--interval', type=int, default=1, help='draw every so many samples; default: 1')
    parser.add_argument(
        '--tta',
        action='store_true',
        help='test-time augmentation by tta_model and tta_pipeline of the config; without them: mirroring',
    )
    parser.add_argument('--amp', action='store_true', help='mixed precision, as in training')
    add_common_arguments(parser)
    args = parser.parse_args(argv)
    if args.out is None and args.out_item is not None:
        parser.error('--out-item expects --out, the file to write to.')
    if args.out and args.out_item != 'metrics' and not args.out.endswith(('.pkl', '.pickle')):
        parser.error(f'--out expects a .pkl file for predictions, but got {args.out!r}; for metrics add --out-item metrics.')
    if args.out and args.out_item == 'metrics' and not args.out.endswith(METRIC_FILES):
        parser.error(f'--out expects a file that ends in {", ".join(METRIC_FILES)} for metrics, but got {args.out!r}.')
    return args


def merge_args(cfg: Config, args: argparse.Namespace) -> Config:
    """Reduce the config to its student and write the command line's choices into it.

    ``--cfg-options`` comes first, so that it names the settings of the config as it is written (``model.student...``), as in
    training.
    """
    if args.cfg_options is not None:
        cfg.merge_from_dict(args.cfg_options)
    cfg = student_config(cfg)
    missing = [key for key in ('test_dataloader', 'test_evaluator', 'test_cfg') if cfg.get(key) is None]
    if missing:
        raise ValueError(f'Testing expects {missing} in {args.config}, but there is none.')
    apply_common_arguments(cfg, args)
    # Without its name, which that of the training has in the same folder, the runner names it after the time.
    object.__setattr__(cfg, '_filename', None)
    # The checkpoint is loaded by main(), strictly and as the student's.
    cfg.load_from, cfg.resume = None, False
    if args.amp:
        cfg.test_cfg.fp16 = amp_dtype() is not torch.float32
        if not cfg.test_cfg.fp16:
            print(SLOW_BF16)
    if args.show or args.show_dir is not None:
        enable_drawing(cfg, args)
    if args.tta:
        enable_tta(cfg)
    return cfg


def enable_drawing(cfg: Config, args: argparse.Namespace) -> None:
    """Switch on the host's hook that draws predictions."""
    hook = default_hook(cfg, 'visualization')
    name = type_name(hook)
    if name not in DRAWING_HOOKS:
        raise ValueError(
            f'--show and --show-dir expect one of the hooks {list(DRAWING_HOOKS)} as default_hooks.visualization in '
            f"{args.config}, but got {name or None}: add default_hooks = dict(visualization=dict(type='...'))."
        )
    switch, folder = DRAWING_HOOKS[name]
    hook.update({switch: True, 'show': args.show, 'wait_time': args.wait_time, 'interval': args.interval})
    if args.show_dir is None:
        return
    if folder is not None:
        hook[folder] = args.show_dir
    else:
        cfg.visualizer.save_dir = args.show_dir


def enable_tta(cfg: Config) -> None:
    """Wrap the model for test-time augmentation: by the config's own, else with mirrored images, as the hosts' scripts do."""
    if 'tta_model' not in cfg:
        scope = cfg.model.get('_scope_') or cfg.get('default_scope') or host_of(cfg)
        if scope not in TTA_MODELS:
            raise ValueError(
                f'--tta expects tta_model and tta_pipeline in the config, but there are none; '
                f'models of {", ".join(TTA_MODELS)} have a default, and this one is of {scope or None}.'
            )
        cfg.tta_model = TTA_MODELS[scope]
    tested = [dataset for _, dataset in datasets(cfg.test_dataloader, 'test_dataloader') if 'pipeline' in dataset]
    if not tested:
        raise ValueError('--tta expects a data set with a pipeline in test_dataloader, but there is none: leave --tta out.')
    if 'tta_pipeline' not in cfg:
        cfg.tta_pipeline = mirrored(tested[0].pipeline)
    if cfg.get('data_preprocessor') is not None:
        # The runner gives it to a model that has none of its own, but the wrapper would force it on any.
        if cfg.model.get('data_preprocessor') is None:
            cfg.model.data_preprocessor = cfg.data_preprocessor
        cfg.data_preprocessor = None
    cfg.model = ConfigDict(**cfg.tta_model, module=cfg.model)
    for dataset in tested:
        dataset.pipeline = cfg.tta_pipeline


def mirrored(pipeline: list) -> list:
    """Return a test pipeline that gives an image as it is and mirrored: in that order, for merged samples keep the annotations
    of the first."""
    packing = copy.deepcopy(pipeline[-1])
    if 'meta_keys' in packing:  # how an image was flipped is what predictions are flipped back by
        packing.meta_keys = tuple(dict.fromkeys((*packing.meta_keys, 'flip', 'flip_direction')))
    flips = [dict(type='RandomFlip', prob=0.0), dict(type='RandomFlip', prob=1.0)]
    return [*copy.deepcopy(pipeline[:-1]), dict(type='TestTimeAug', transforms=[flips, [packing]])]


def plain_model(model: nn.Module) -> nn.Module:
    """Return the model within the wrappers of distributed testing and test-time augmentation."""
    while is_model_wrapper(model) or isinstance(model, BaseTTAModel):
        model = model.get_submodule('module')
    return model


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run the command."""
    args = parse_args(argv, prog)
    with in_one_line(prog or 'test'):
        cfg = merge_args(read_config(args), args)
    runner = build_runner(cfg)
    with in_one_line(prog or 'test'):
        load_plain_model(plain_model(runner.model), args.checkpoint)
    if args.out and args.out_item != 'metrics':
        runner.test_evaluator.metrics.append(DumpResults(out_file_path=args.out))
    metrics = runner.test()
    if args.out_item == 'metrics' and is_main_process():
        mmengine.dump(metrics, args.out)
