"""Train methods x seeds at one budget from one teacher and record their accuracy.

Every run is one ``tools/train.py`` process. What is recorded already is skipped, an interrupted run resumes from its last
checkpoint, and every result is appended to benchmarks/results/accuracy.jsonl as soon as it is there:

    python benchmarks/accuracy.py --dataset cifar100-subset --variants plain,dskd --seeds 0,1,2
    python benchmarks/accuracy.py --dataset cifar100-subset --holdout --epochs 20 --variants all --seeds 0
"""

import argparse
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from threading import Lock

from mmengine.device import get_device

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / 'benchmarks' / 'results' / 'accuracy.jsonl'


@dataclass(frozen=True)
class Setting:
    """One data set with a teacher and a student.

    Attributes:
        task (str): 'cls', 'det' or 'seg'.
        pair (str): '<student> <teacher>', the field's order.
        student (str): Config of the plain student.
        teacher (str): Config of the teacher.
        distilled (str): Config of the student under DSKD.
        metric (str): Key of the metric in the logs.
        epochs (int): Default budget of a student.
        train_images (int): Size of the training part.
        holdout (dict): Settings that train on a part of the training images and validate on another.
        holdout_images (int): Size of the training part under ``holdout``.
        scale (float): What the logged metric is multiplied with: records are in percent, mmdet logs fractions.
        schedule (tuple): Where a student's config counts its epochs.
        interval (int): Epochs between validations and checkpoints of a student.
        amp (bool): Whether to train in bfloat16. Two-stage detectors do not: mmcv's NMS and RoIAlign have no bfloat16 on CPUs.
        unit (str): The metric's name in tables.
        test_part (str): What 'test' is in captions.
        holdout_part (str): What 'holdout' is in captions.
    """

    task: str
    pair: str
    student: str
    teacher: str
    distilled: str
    metric: str
    epochs: int
    train_images: int
    holdout: dict[str, str] = field(default_factory=dict)
    holdout_images: int = 0
    scale: float = 1
    schedule: tuple[str, ...] = ('train_cfg.max_epochs', 'param_scheduler.T_max', 'param_scheduler.end')
    interval: int = 5
    amp: bool = True
    unit: str = 'top-1'
    test_part: str = 'the official test images'
    holdout_part: str = 'held-out training images'

    @property
    def trains_alike(self) -> bool:
        """Whether ``holdout`` leaves the training as it is, so that a run is judged on both parts."""
        return bool(self.holdout) and all(key.startswith('val_dataloader.') for key in self.holdout)


# The schedules of configs/_base_/schedules/adamw_*.py: a warm-up, then the cosine.
WARMED_UP = ('train_cfg.max_epochs', 'param_scheduler.1.T_max', 'param_scheduler.1.end')
BCCD = dict(
    task='det',
    metric='coco/bbox_mAP',
    epochs=60,
    train_images=205,
    # The data come with a validation part of their own.
    holdout={'val_dataloader.dataset.ann_file': 'coco/val.json'},
    holdout_images=205,
    scale=100,
    schedule=WARMED_UP,
    interval=10,
    unit='mAP',
    holdout_part='the official validation images',
)
NUCLEI = dict(
    task='seg',
    metric='mIoU',
    epochs=30,
    train_images=531,
    holdout={
        'train_dataloader.dataset.indices': '-398',
        'val_dataloader.dataset.ann_file': 'train.txt',
        'val_dataloader.dataset.indices': '133',
    },
    holdout_images=398,
    schedule=WARMED_UP,
    interval=10,
    unit='mIoU',
    test_part='the validation images',
)
NUCLEUS_INSTANCES = {
    **NUCLEI,
    'task': 'det',
    'metric': 'coco/segm_mAP',
    'epochs': 10,
    'holdout': {**NUCLEI['holdout'], 'val_dataloader.dataset.ann_file': 'annotations/instances_train.json'},
    'scale': 100,
    'amp': False,
    'unit': 'mask mAP',
}


def small_pair(student: str, teacher: str, data: str) -> dict[str, str]:
    """The fields of a setting that follow from the names of its configs."""
    width = teacher.split('_')[1]
    return dict(
        pair=f'{student} {teacher}',
        student=f'configs/plain/{student}_{data}.py',
        teacher=f'configs/plain/{teacher}_{data}.py',
        distilled=f'configs/dskd/{student}_{width}_{data}.py',
    )


SETTINGS = {
    'cifar100-subset': Setting(
        task='cls',
        pair='resnet8-w16 resnet14-w32',
        student='configs/plain/resnet8-w16_cifar100-subset.py',
        teacher='configs/plain/resnet14-w32_cifar100-subset.py',
        distilled='configs/dskd/resnet8-w16_r14-w32_cifar100-subset.py',
        metric='accuracy/top1',
        epochs=20,
        train_images=20000,
        holdout={
            'train_dataloader.dataset.blocks': '[0,1]',
            'val_dataloader.dataset.split': 'train',
            'val_dataloader.dataset.blocks': '[3]',
        },
        holdout_images=10000,
    ),
    'fashion-mnist': Setting(
        task='cls',
        pair='resnet8-w8 resnet14-w16',
        student='configs/plain/resnet8-w8_fashion-mnist.py',
        teacher='configs/plain/resnet14-w16_fashion-mnist.py',
        distilled='configs/dskd/resnet8-w8_r14-w16_fashion-mnist.py',
        metric='accuracy/top1',
        epochs=5,
        train_images=60000,
        holdout={
            'train_dataloader.dataset.indices': '10000',
            'val_dataloader.dataset.split': 'train',
            'val_dataloader.dataset.indices': '-10000',
        },
        holdout_images=10000,
    ),
    'bccd-retinanet': Setting(**BCCD, **small_pair('retinanet_r18-w16', 'retinanet_r18-w32', 'bccd')),
    'bccd-retinanet-w8': Setting(**BCCD, **small_pair('retinanet_r18-w8', 'retinanet_r18-w32', 'bccd')),
    'bccd-fcos': Setting(**BCCD, **small_pair('fcos_r18-w16', 'fcos_r18-w32', 'bccd')),
    'bccd-faster-rcnn': Setting(
        **{**BCCD, 'epochs': 40, 'amp': False}, **small_pair('faster-rcnn_r18-w16', 'faster-rcnn_r18-w32', 'bccd')
    ),
    'dsb2018-fcn': Setting(**NUCLEI, **small_pair('fcn_r14-w8', 'fcn_r14-w32', 'dsb2018')),
    'dsb2018-pspnet': Setting(**NUCLEI, **small_pair('pspnet_r14-w8', 'pspnet_r14-w32', 'dsb2018')),
    'dsb2018-deeplabv3': Setting(**NUCLEI, **small_pair('deeplabv3_r14-w8', 'deeplabv3_r14-w32', 'dsb2018')),
    'dsb2018-mask-rcnn': Setting(**NUCLEUS_INSTANCES, **small_pair('mask-rcnn_r14-w16', 'mask-rcnn_r14-w32', 'dsb2018')),
}

NO_DIFFUSION = {'model.loss_weights.lsh': '0', 'model.loss_weights.virtual': '0'}
VARIANTS: dict[str, dict[str, str]] = {
    # The names without options are a method's default.
    'plain': {},
    'teacher': {},
    'dskd': {},
    'label': {'model.target': 'label', 'model.loss_weights.logit': '0'},
    'no-guidance': {'model.sampler.scale': '0'},
    'no-lsh': {'model.loss_weights.lsh': '0'},
    'no-virtual': {'model.loss_weights.virtual': '0'},
    'no-anchor': {'model.loss_weights.anchor': '0'},
    'no-logit': {'model.loss_weights.logit': '0'},
    'prior-teacher': {'model.prior': 'teacher'},
    'strong-guidance': {'model.sampler.scale': '5'},
    'early-start': {'model.sampler.start': '0.2', 'model.sampler.scale': '8'},
    'early-start-strong-guidance': {'model.sampler.start': '0.2', 'model.sampler.scale': '32'},
    'no-noise': {'model.sampler.noise': 'none', 'model.sampler.start': '0.2', 'model.sampler.scale': '32'},
    'clean-guidance': {'model.sampler.guidance_point': 'clean'},
    'local': {'model.target': 'local'},
    'local-dense-prior-teacher': {'model.target': 'local', 'model.prior': 'teacher', 'model.site.dense': 'True'},
    'dense-prior-teacher': {'model.prior': 'teacher', 'model.site.dense': 'True'},
    'strong-lsh': {'model.loss_weights.lsh': '5'},
    # Dense tasks begin with little noise; this is where images begin.
    'middle-start': {'model.sampler.start': '0.5', 'model.sampler.scale': '1'},
    # The controls: everything but the diffusion.
    'anchor-only': {**NO_DIFFUSION, 'model.loss_weights.logit': '0'},
    'anchor-only-label': {**NO_DIFFUSION, 'model.loss_weights.logit': '0', 'model.target': 'label'},
    'anchor-and-logit': NO_DIFFUSION,
    'local-anchor-and-logit': {**NO_DIFFUSION, 'model.target': 'local'},
    'logit-only': {**NO_DIFFUSION, 'model.loss_weights.anchor': '0'},
}
LOCK = Lock()


def method_of(variant: str) -> str:
    """The method that a variant belongs to."""
    return variant if variant in ('plain', 'teacher') else 'dskd'


def run(args: argparse.Namespace, dataset: str, variant: str, seed: int) -> None:
    """Train once and record the result."""
    setting = SETTINGS[dataset]
    config = {'plain': setting.student, 'teacher': setting.teacher}.get(variant, setting.distilled)
    epochs = args.epochs or setting.epochs
    split = 'holdout' if args.holdout and variant != 'teacher' else 'test'
    options = {**VARIANTS[variant], 'randomness.seed': seed}
    if variant == 'teacher':
        # Its own schedule, at the place where the students' configs look for it.
        name, work_dir = Path(config).stem, Path('work_dirs') / Path(config).stem
    else:
        name = f'{dataset}/{split}-{epochs}e/{variant}-s{seed}'
        work_dir = Path(args.work_dir) / name
        options |= dict.fromkeys(setting.schedule, epochs)
        options |= {'train_cfg.val_interval': setting.interval, 'default_hooks.checkpoint.interval': setting.interval}
        options |= setting.holdout if args.holdout else {}
    command = [sys.executable, 'tools/train.py', config, '--work-dir', str(work_dir), '--resume']
    command += ['--amp'] if setting.amp else []
    command += ['--cfg-options', *(f'{key}={value}' for key, value in options.items())]
    key = dict(dataset=dataset, variant=variant, seed=seed, split=split, epochs=epochs)
    if variant == 'teacher':
        del key['epochs']
    if any(all(record.get(k) == v for k, v in key.items()) for record in records(args.results)):
        return
    print(f'start {name}', flush=True)
    work_dir.mkdir(parents=True, exist_ok=True)
    # Before the run: what is committed meanwhile is not what it ran.
    revision, start = commit(), time.time()
    with open(work_dir / 'train.log', 'a') as log:
        code = subprocess.run(command, cwd=ROOT, stdout=log, stderr=log, env={**os.environ, 'OMP_NUM_THREADS': '1'}).returncode
    if code:
        print(f'FAILED {name}, exit status {code}: see {work_dir / "train.log"}', flush=True)
        return
    value, last = final_metric(work_dir, setting.metric, None if variant == 'teacher' else epochs)
    seconds = round(time.time() - start, 1)
    found = {split: value}
    if setting.trains_alike and variant != 'teacher':
        # One training serves both parts.
        other = 'test' if split == 'holdout' else 'holdout'
        found[other] = evaluate(setting, config, work_dir, epochs, other)
    common = dict(
        task=setting.task,
        dataset=dataset,
        pair=setting.pair,
        method=method_of(variant),
        variant=variant,
        seed=seed,
        metric=setting.metric,
        epochs=last if variant == 'teacher' else epochs,
        train_images=setting.holdout_images if split == 'holdout' else setting.train_images,
        seconds=seconds,
        command=shlex.join(['python', *command[1:]]),
        commit=revision,
        versions=versions(),
        device=get_device(),
    )
    for part, value in found.items():
        record = dict(common, split=part, value=round(value * setting.scale, 4))
        with LOCK, open(args.results, 'a') as file:
            file.write(json.dumps(record) + '\n')
        print(f'done  {name} on {part}: {record["value"]:.2f} in {seconds} s', flush=True)


def evaluate(setting: Setting, config: str, work_dir: Path, epochs: int, split: str) -> float:
    """The metric of a finished run's last checkpoint on another part of the data."""
    options = {}
    if split == 'holdout':
        options = {key.replace('val_dataloader', 'test_dataloader'): value for key, value in setting.holdout.items()}
    out = work_dir / f'{split}.json'
    checkpoint = work_dir / f'epoch_{epochs}.pth'
    command = [sys.executable, 'tools/test.py', config, str(checkpoint), '--work-dir', str(work_dir / split)]
    command += ['--out', str(out), '--out-item', 'metrics']
    if options:
        command += ['--cfg-options', *(f'{key}={value}' for key, value in options.items())]
    with open(work_dir / f'{split}.log', 'a') as log:
        subprocess.run(command, cwd=ROOT, stdout=log, stderr=log, env={**os.environ, 'OMP_NUM_THREADS': '1'}, check=True)
    return json.loads(out.read_text())[setting.metric]


def records(path: Path | None = None) -> list[dict]:
    """All recorded results."""
    path = path or RESULTS
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text().splitlines() if line.strip()]


def final_metric(work_dir: Path, metric: str, epochs: int | None) -> tuple[float, int]:
    """The metric after the last epoch, not the best one: choosing an epoch on the test part would flatter."""
    values = []
    for path in sorted(work_dir.glob('*/vis_data/scalars.json')):
        values += [json.loads(line) for line in path.read_text().splitlines()]
    last = [value for value in values if metric in value][-1]
    if epochs is not None and last['step'] != epochs:
        raise RuntimeError(
            f'{work_dir} was interrupted in its last validation, after epoch {epochs}: remove it and run it again.'
        )
    return last[metric], last['step']


def commit() -> str:
    """The commit that is checked out, marked if the tree differs from it."""
    git = ['git', '-C', str(ROOT)]
    head = subprocess.run([*git, 'rev-parse', '--short', 'HEAD'], capture_output=True, text=True).stdout.strip()
    changed = subprocess.run([*git, 'status', '--porcelain', 'dskd_mm', 'configs'], capture_output=True, text=True).stdout
    return head + ('+changes' if changed.strip() else '')


def versions() -> dict[str, str]:
    """Versions of what the result depends on."""
    found = dict(python=platform.python_version())
    packages = ('mmengine', 'mmpretrain', 'mmdet', 'mmdetection', 'mmsegmentation')
    for name in ('torch', *(prefix + package for package in packages for prefix in ('onedl-', ''))):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--dataset', choices=list(SETTINGS), required=True)
    parser.add_argument('--variants', default='plain,dskd', help=f'of {", ".join(VARIANTS)}; or all')
    parser.add_argument('--seeds', default='0', help='comma separated')
    parser.add_argument('--epochs', type=int, help='budget of every student; default: that of the data set')
    parser.add_argument('--holdout', action='store_true', help='train on a part and judge on held-out training images')
    parser.add_argument('--jobs', type=int, default=1, help='runs at once')
    parser.add_argument('--results', type=Path, default=RESULTS, help='file to append to; default: %(default)s')
    parser.add_argument('--work-dir', default='work_dirs/benchmarks')
    args = parser.parse_args()
    names = list(VARIANTS) if args.variants == 'all' else args.variants.split(',')
    for name in names:
        if name not in VARIANTS:
            parser.error(f'--variants knows {", ".join(VARIANTS)} or all, but got {name!r}')
    if args.holdout and not SETTINGS[args.dataset].holdout:
        parser.error(f'--holdout is not defined for {args.dataset}')
    with ThreadPoolExecutor(args.jobs) as pool:
        jobs = [pool.submit(run, args, args.dataset, name, seed) for seed in map(int, args.seeds.split(',')) for name in names]
        for job in jobs:
            job.result()


if __name__ == '__main__':
    main()
