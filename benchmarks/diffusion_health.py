"""Is the denoised feature nearer to the teacher than the student's, all through training, and what does it give? On digits.

Students of the example in examples/digits are trained on a part of its training images, as their teacher is, and judged on
others: the test images play no role. Of the images of single digits these are 600 and 298, of scenes 800 and 400. A record for
each student, with what was logged of the diffusion's health (docs/en/log.md), is appended to
benchmarks/results/diffusion_health.jsonl:

    python benchmarks/diffusion_health.py --variants anchor-and-logit,first,dskd --seeds 0-3
    python benchmarks/diffusion_health.py --task det --variants plain,anchor-and-logit,dskd --seeds 0-2
"""

import argparse
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev

if not __package__:  # called as a script, which sees its own folder only
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.records import append, origin, records
from benchmarks.runner import ENVIRONMENT, ROOT, Training
from benchmarks.variants import VARIANTS
from examples.digits.experiments import CONFIGS, TASKS, length_options
from examples.digits.scenes import DigitScenes, write_digit_scenes

RESULTS = ROOT / 'benchmarks' / 'results' / 'diffusion_health.jsonl'
WORK = Path('work_dirs/diffusion_health')
TRAIN, HELD_OUT = 'train_dataloader.dataset.', 'val_dataloader.dataset.'
PARTS = {
    'cls': {f'{TRAIN}indices': '600', f'{HELD_OUT}split': 'train', f'{HELD_OUT}indices': '-298'},
    'det': {f'{HELD_OUT}ann_file': 'annotations/train.json', f'{HELD_OUT}data_prefix.img': 'images/train/'},
    'seg': {f'{HELD_OUT}data_prefix.img_path': 'images/train', f'{HELD_OUT}data_prefix.seg_map_path': 'masks/train'},
}
# Of the students; teachers have those of their configs.
EPOCHS = {'cls': 20, 'det': 8, 'seg': 8}
SCENES = DigitScenes(num_train=1200, num_test=1)


def held_out(task: str) -> dict[str, str]:
    """Return the options that hold training images out; of scenes, they are written first."""
    if not TASKS[task].uses_scenes:
        return PARTS[task]
    folder = str(write_digit_scenes(ROOT / WORK / 'scenes', SCENES))
    parts = {
        f'{TRAIN}indices': '800',
        f'{HELD_OUT}indices': '-400',
        f'{TRAIN}data_root': folder,
        f'{HELD_OUT}data_root': folder,
    }
    return PARTS[task] | parts


def train(config: str, name: str, epochs: int | None, seed: int, options: dict[str, str]) -> Training:
    """Train once; what has ended before is taken as it is."""
    given = {'default_hooks.checkpoint.max_keep_ckpts': '1', 'randomness.seed': str(seed)} | options
    cfg = Training(f'{CONFIGS}/{config}.py', WORK).cfg
    epochs = epochs or cfg.train_cfg.max_epochs
    given |= length_options(cfg, epochs) | {'train_cfg.val_interval': str(epochs)}
    training = Training(f'{CONFIGS}/{config}.py', WORK / name, given)
    # The checkpoint is there before the validation, in which a run may have been interrupted.
    if not any(row['step'] == epochs for row in training.evaluations()):
        training.folder.mkdir(parents=True, exist_ok=True)
        with (training.folder / 'train.log').open('w') as log:
            subprocess.run(training.command, cwd=ROOT, env=ENVIRONMENT, check=True, stdout=log, stderr=log)
    return training


def main() -> None:
    """Train what is asked for and is not recorded, and append a record for each student."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--task', choices=list(TASKS), default='cls')
    parser.add_argument('--variants', default='anchor-and-logit,first,dskd', help='of benchmarks/variants.py; dskd, plain')
    parser.add_argument('--seeds', default='0-3', help='first and last')
    parser.add_argument('--epochs', type=int, help=f'of the students; default: {EPOCHS}')
    parser.add_argument('--results', type=Path, default=RESULTS, help='file to append to; default: %(default)s')
    args = parser.parse_args()
    first, last = map(int, args.seeds.split('-'))
    task, epochs, parts = TASKS[args.task], args.epochs or EPOCHS[args.task], held_out(args.task)
    teacher = train(f'{task.name}_teacher', f'{task.name}/teacher', None, 0, parts)
    checkpoint = teacher.folder / f'epoch_{teacher.cfg.train_cfg.max_epochs}.pth'
    for variant in args.variants.split(','):
        options, config = dict(parts), f'{task.name}_plain'
        if variant != 'plain':
            config = f'{task.name}_dskd'
            options |= {} if variant == 'dskd' else VARIANTS[variant].options
            options['model.teacher.checkpoint'] = str(checkpoint)
        found = []
        for seed in range(first, last + 1):
            key = dict(task=task.name, variant=variant, seed=seed, epochs=epochs)
            known = [record for record in records(args.results) if key.items() <= record.items()]
            if not known:
                training = train(config, f'{task.name}/{variant}_{epochs}_{seed}', epochs, seed, options)
                value = round(task.unit * training.evaluations()[-1].get(task.key, 0.0), 2)
                command = f'python benchmarks/diffusion_health.py --task {task.name} --variants {variant}'
                command += f' --seeds {seed}-{seed} --epochs {epochs}'
                known = [key | dict(value=value, health=training.health(), command=command, **origin())]
                append(args.results, known)
            found.append(known[-1]['value'])
        print(f'{variant}: {mean(found):.2f} ± {stdev(found) if len(found) > 1 else 0:.2f}', flush=True)


if __name__ == '__main__':
    main()
