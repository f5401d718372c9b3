"""Is the denoised feature better than the student's own? Measure it, by the teacher's classifier, for several samplers.

No training: a distiller's checkpoint is loaded, and its features of training images are denoised from several points of the
schedule under several strengths of guidance. What is reported is the divergence of the teacher classifier's prediction from the
teacher's own one and from the annotations (the losses that DSKD uses, lower is better), and how often it names the annotated
class. Results are appended to benchmarks/results/denoised.jsonl:

    python benchmarks/denoised.py CONFIG CHECKPOINT --starts 0.5,0.1 --scales 0,1,100
"""

import argparse
import shlex
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from mmengine.config import Config
from mmengine.runner import Runner
from torch import Tensor

if not __package__:  # called as a script, which sees its own folder only
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.records import append, origin
from benchmarks.runner import ROOT
from dskd_mm.distillers import DSKDDistiller
from dskd_mm.functional import hit_rate, target_cross_entropy
from dskd_mm.utils.checkpoint import load_checkpoint_file

RESULTS = ROOT / 'benchmarks' / 'results' / 'denoised.jsonl'


def measure(distiller: DSKDDistiller, data: dict, starts: list[float], scales: list[float]) -> dict[tuple, dict[str, float]]:
    """Return the quality of the student's aligned feature, under the key (None, None), and of each denoised one, under (start,
    scale)."""

    def quality(batch: Any, feature: Tensor) -> dict[str, float]:
        logits = batch.pyramid.map(distiller.classifiers, feature)
        sigmoid = distiller.classifiers[0].sigmoid
        return dict(
            to_teacher=float(target_cross_entropy(logits, batch.guide.target, sigmoid)),
            to_label=float(target_cross_entropy(logits, batch.target, sigmoid)),
            accuracy=100 * float(hit_rate(logits, batch.target)),
        )

    found: dict[tuple, dict[str, float]] = {}
    sampler = distiller.diffusion.sampler
    for sampler.start in starts:
        for sampler.scale in scales:
            batch, denoised = distiller.denoise(**data)
            found.setdefault((None, None), quality(batch, batch.aligned))
            found[sampler.start, sampler.scale] = quality(batch, denoised)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config of a distiller')
    parser.add_argument('checkpoint', help='checkpoint of its training')
    parser.add_argument('--starts', default='0.5,0.2,0.1', help='where sampling begins, as shares of the schedule')
    parser.add_argument('--scales', default='0,1,20,100', help='strengths of guidance')
    parser.add_argument('--batches', type=int, default=3, help='batches of training images')
    parser.add_argument('--results', type=Path, default=RESULTS, help='file to append to; default: %(default)s')
    args = parser.parse_args()
    cfg = Config.fromfile(args.config)
    cfg.work_dir, cfg.log_level, cfg.randomness = 'work_dirs/denoised', 'ERROR', dict(seed=0)
    runner = Runner.from_cfg(cfg)
    checkpoint = load_checkpoint_file(args.checkpoint)
    runner.model.load_state_dict(checkpoint['state_dict'])
    values: dict[tuple, list[dict[str, float]]] = defaultdict(list)
    loader = iter(runner.train_dataloader)
    with torch.no_grad():
        for _ in range(args.batches):
            data = runner.model.train().data_preprocessor(next(loader), True)
            numbers = [[float(text) for text in option.split(',')] for option in (args.starts, args.scales)]
            for key, value in measure(runner.model, data, *numbers).items():
                values[key].append(value)
    for (start, scale), found in values.items():
        record = dict(config=args.config, epoch=checkpoint['meta'].get('epoch'), batches=args.batches)
        record |= dict(start=start, scale=scale)
        record |= {key: round(mean(value[key] for value in found), 4) for key in found[0]}
        record |= dict(command=shlex.join(['python', *sys.argv]), **origin())
        append(args.results, [record])
        print({key: record[key] for key in ('start', 'scale', 'to_teacher', 'to_label', 'accuracy')})


if __name__ == '__main__':
    main()
