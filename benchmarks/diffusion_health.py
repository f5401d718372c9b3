"""Is the denoised feature nearer to the teacher than the student's, all through training, and what does it give? On digits.

Students of the example in examples/digits are trained on the first 600 of its training images, as their teacher is, and judged
on the other 298: the test images play no role. What the log says of the diffusion's health (docs/en/log.md) is averaged
over six log entries around a fifth and a half of the training, and over the last six. A record for each student is appended to
benchmarks/results/diffusion_health.jsonl:

    python benchmarks/diffusion_health.py --variants anchor-and-logit,first,dskd --seeds 0-3
"""

import argparse
import shlex
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev

if not __package__:  # called as a script, which sees its own folder only
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.records import append, origin
from benchmarks.runner import ENVIRONMENT, ROOT, Training
from benchmarks.variants import VARIANTS

RESULTS = ROOT / 'benchmarks' / 'results' / 'diffusion_health.jsonl'
WORK = Path('work_dirs/diffusion_health')
CONFIGS = 'examples/digits/configs'
HELD_OUT = {
    'train_dataloader.dataset.indices': '600',
    'val_dataloader.dataset.split': 'train',
    'val_dataloader.dataset.indices': '-298',
    'default_hooks.checkpoint.max_keep_ckpts': '1',
}


def train(config: str, name: str, epochs: int, seed: int, options: dict[str, str]) -> Training:
    """Train once; what has ended before is taken as it is."""
    length = {key: str(epochs) for key in ('train_cfg.max_epochs', 'param_scheduler.T_max', 'param_scheduler.end')}
    given = HELD_OUT | length | {'train_cfg.val_interval': str(epochs), 'randomness.seed': str(seed)} | options
    training = Training(f'{CONFIGS}/{config}.py', WORK / name, given)
    if not (training.folder / f'epoch_{epochs}.pth').exists():
        subprocess.run(training.command, cwd=ROOT, env=ENVIRONMENT, check=True, stdout=subprocess.DEVNULL)
    return training


def main() -> None:
    """Train what is asked for and append a record for each student."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--variants', default='anchor-and-logit,first,dskd', help='of benchmarks/variants.py; dskd: defaults')
    parser.add_argument('--seeds', default='0-3', help='first and last')
    parser.add_argument('--epochs', type=int, default=20)
    args = parser.parse_args()
    first, last = map(int, args.seeds.split('-'))
    teacher = train('cls_teacher', 'teacher', 10, 0, {})
    for variant in args.variants.split(','):
        options = {} if variant == 'dskd' else VARIANTS[variant].options
        options = options | {'model.teacher.checkpoint': str(teacher.folder / 'epoch_10.pth')}
        found = []
        for seed in range(first, last + 1):
            training = train('cls_dskd', f'{variant}_{args.epochs}_{seed}', args.epochs, seed, options)
            found.append(training.evaluations()[-1]['accuracy/top1'])
            record = dict(variant=variant, seed=seed, epochs=args.epochs, accuracy=round(found[-1], 2))
            append(RESULTS, [record | dict(health=training.health(), command=shlex.join(['python', *sys.argv]), **origin())])
        print(f'{variant}: {mean(found):.2f} ± {stdev(found) if len(found) > 1 else 0:.2f}', flush=True)


if __name__ == '__main__':
    main()
