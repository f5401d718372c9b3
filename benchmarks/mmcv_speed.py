"""Compare dskd_mm.mmcv_ops with mmcv's compiled operators on the CPU: single operators, and steps of whole detectors.

python benchmarks/mmcv_speed.py build/operators.so   # writes benchmarks/results/mmcv_speed.jsonl

The module is what tests/test_mmcv_ops/reference/build.py made of mmcv's sources, or the `_ext` of a compiled mmcv.

Both take their turns in one process of one thread, and what is counted is the process's own CPU time: other load on the
machine does not matter. The detectors are those of benchmarks/mmcv_zoo.py, on its small images: on larger ones, operators are
a smaller part of a step.
"""

import argparse
import importlib
import json
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS as ROOT_MODELS
from mmengine.registry import init_default_scope

if not __package__:  # called as a script, which sees its own folder only
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.mmcv_zoo import MODELS, batch, configured, test_step, training_step
from benchmarks.records import commit, rewrite, versions
from benchmarks.runner import ROOT

sys.path[:0] = [str(ROOT / 'tests' / 'test_mmcv_ops'), str(ROOT / 'tests' / 'test_mmcv_ops' / 'reference')]
from operators import patched  # noqa: E402
from record import load  # noqa: E402

RESULTS = ROOT / 'benchmarks' / 'results' / 'mmcv_speed.jsonl'
ROUNDS = 5


def boxes(count: int) -> torch.Tensor:
    corner = torch.rand(count, 2) * 200
    return torch.cat([corner, corner + torch.rand(count, 2) * 60], dim=1)


def operators() -> dict[str, Callable[[], Any]]:
    """Return calls of sizes that occur in detectors."""
    from mmcv import ops

    rois = torch.cat([torch.zeros(512, 1), boxes(512)], dim=1)
    maps, x = torch.randn(1, 64, 64, 64, requires_grad=True), torch.randn(1, 64, 32, 32, requires_grad=True)
    weight, offset = torch.randn(64, 64, 3, 3, requires_grad=True), torch.randn(1, 18, 32, 32, requires_grad=True)
    mask = torch.rand(1, 9, 32, 32, requires_grad=True)
    found: dict[str, Callable[[], Any]] = {}
    for count in (1000, 5000):
        arguments = boxes(count), torch.rand(count)
        found[f'nms, {count:,} boxes'] = lambda arguments=arguments: ops.nms(*arguments, 0.7)
    few = boxes(1000), torch.rand(1000)
    found['soft_nms, 1,000 boxes'] = lambda: ops.soft_nms(*few, 0.5, min_score=0.05)
    found['roi_align of 512 boxes, 64 x 64 x 64, forward and backward'] = lambda: (
        ops.roi_align(maps, rois, 7, 0.25, 0, 'avg', True).sum().backward()
    )
    found['deform_conv2d, 64 channels, 32 x 32, forward and backward'] = lambda: (
        ops.deform_conv2d(x, offset, weight, 1, 1).sum().backward()
    )
    found['modulated_deform_conv2d, the same'] = lambda: (
        ops.modulated_deform_conv2d(x, offset, mask, weight, None, 1, 1).sum().backward()
    )
    return found


def detectors() -> dict[str, Callable[[], Any]]:
    importlib.import_module('mmdet.utils').register_all_modules()
    found: dict[str, Callable[[], Any]] = {}
    for name in ('retinanet', 'faster_rcnn', 'deformable_detr'):
        init_default_scope('mmdet')
        torch.manual_seed(0)
        model = revert_sync_batchnorm(ROOT_MODELS.build(configured('mmdet', MODELS['mmdet'][name]).model))
        found[f'{name}, training step'] = lambda model=model: training_step(model, batch('mmdet'))
        found[f'{name}, test step'] = lambda model=model: test_step(model, batch('mmdet'))
    return found


def seconds(call: Callable[[], Any]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def compare(call: Callable[[], Any], ext_compiled: SimpleNamespace) -> dict[str, float]:
    """Return the medians of CPU seconds with both, and of their ratio."""
    from dskd_mm.mmcv_ops import ext

    call()
    compiled, ours = [], []
    for _ in range(ROUNDS):
        with patched(ext_compiled):
            compiled.append(seconds(call))
        with patched(ext):
            ours.append(seconds(call))
    ratios = [b / a for a, b in zip(compiled, ours, strict=True)]
    return dict(compiled=statistics.median(compiled), ours=statistics.median(ours), ratio=statistics.median(ratios))


def main() -> None:
    warnings.filterwarnings('ignore')
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('module', type=Path, help='the compiled module')
    ext_compiled = load([parser.parse_args().module])
    torch.set_num_threads(1)
    origin: dict[str, Any] = dict(
        command='python benchmarks/mmcv_speed.py build/operators.so',
        machine=platform.machine(),
        commit=commit(),
        versions=versions(),
    )
    rows = []
    for name, call in (operators() | detectors()).items():
        rows.append(dict(what=name, **compare(call, ext_compiled), **origin))
        print(json.dumps({key: rows[-1][key] for key in ('what', 'compiled', 'ours', 'ratio')}), flush=True)
    rewrite(RESULTS, rows)


if __name__ == '__main__':
    main()
