"""What every one of several processes checks, in one start of all of them: see test_many_processes.py.

Imports everything once and forks; writes for each process a JSON file of {name of the check: None or what went wrong}.
"""

import argparse
import copy
import datetime
import functools
import importlib
import itertools
import json
import os
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.hooks import Hook
from mmengine.model import MMDistributedDataParallel, convert_sync_batchnorm
from mmengine.registry import MODELS
from mmengine.runner._flexible_runner import FlexibleRunner
from mmengine.structures import PixelData
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce
from torch.multiprocessing import start_processes

from dskd_mm.cli.common import build_runner
from dskd_mm.distributed import std_over_ranks
from dskd_mm.hooks import CheckFiniteHook
from dskd_mm.optim import BF16OptimWrapper
from dskd_mm.testing import classifier_config, random_batch, random_teacher
from dskd_mm.utils.checkpoint import load_checkpoint_file
from support import (
    DENSE_CLASSES,
    DENSE_SIZE,
    DETECTORS,
    build_distiller,
    dense_distiller_config,
    detection_batch,
    distiller_run_config,
    free_port,
    random_boxes,
    segmentation_batch,
    watch,
)

IGNORED = 255
FOLDER = Path()
"""Where a process writes what it needs for itself."""
RANK, WORLD = 0, 1

KD, DKD, DIST = dict(type='dskd_mm.KDLoss'), dict(type='dskd_mm.DKDLoss'), dict(type='dskd_mm.DISTLoss')
FITNET, AT, PKD = dict(type='dskd_mm.FitNetLoss'), dict(type='dskd_mm.ATLoss'), dict(type='dskd_mm.PKDLoss')
CWD, MGD, BOX = dict(type='dskd_mm.CWDLoss'), dict(type='dskd_mm.MGDLoss'), dict(type='dskd_mm.BoxLoss')
VECTORS = dict(**MGD, mask='channel')
MAP = dict(
    feature=dict(path='backbone', channels=16),
    teacher_feature=dict(path='backbone', channels=24),
)
STAGES = {
    name: dict(student=dict(path=f'backbone.{name}', channels=width), teacher=dict(path=f'backbone.{name}', channels=wide))
    for name, width, wide in (('layer1', 4, 6), ('layer2', 8, 12))
}
NECK = dict(type='dskd_mm.NeckSite')

# name: (method, kind of the student, switches)
SETTINGS: dict[str, tuple[str, str, dict]] = {
    'dskd-gap': ('DSKD', 'gap', dict(warmup=0)),
    'dskd-fcn': ('DSKD', 'fcn', {}),
    'dskd-mix-faster_rcnn': ('DSKD', 'faster_rcnn', dict(mix=0.5)),
    'dskd-retinanet': ('DSKD', 'retinanet', {}),
    'dskd-faster_rcnn': ('DSKD', 'faster_rcnn', {}),
    'dskd-detr': ('DSKD', 'detr', {}),
    'diffkd-gap': ('DiffKD', 'gap', {}),
    'diffkd-fcn': ('DiffKD', 'fcn', {}),
    'diffkd-retinanet': ('DiffKD', 'retinanet', {}),
    'lshfm-gap': ('LSHFM', 'gap', {}),
    'lshfm-fcn': ('LSHFM', 'fcn', {}),
    'lshfm-retinanet': ('LSHFM', 'retinanet', {}),
    'lshfm-faster_rcnn': ('LSHFM', 'faster_rcnn', {}),
    'vkd-gap': ('VkD', 'gap', {}),
    'vkd-retinanet': ('VkD', 'retinanet', {}),
    'srrl-gap': ('SRRL', 'gap', {}),
    'simkd-gap': ('SimKD', 'gap', {}),
    'crosskd-retinanet': ('CrossKD', 'retinanet', {}),
    'crosskd-gfl': ('CrossKD', 'gfl', {}),
    'sokd-gap': ('SoKD', 'gap', dict(site=MAP)),
    'sokd-retinanet': ('SoKD', 'retinanet', {}),
    'rtk-gap': ('RTK', 'gap', dict(layers=STAGES)),
    'rtk-retinanet': ('RTK', 'retinanet', {}),
    'losses-gap': (
        'Configurable',
        'gap',
        dict(distill_losses=dict(kd=KD, dkd=DKD, dist=DIST, fitnet=FITNET, at=AT, cwd=CWD, pkd=PKD, mgd=MGD, vectors=VECTORS)),
    ),
    'losses-fcn': (
        'Configurable',
        'fcn',
        dict(distill_losses=dict(kd=KD, dkd=DKD, dist=DIST, fitnet=FITNET, at=AT, cwd=dict(**CWD, on='logits'), mgd=MGD)),
    ),
    'losses-retinanet': (
        'Configurable',
        'retinanet',
        dict(distill_losses=dict(kd=KD, dist=DIST, box=BOX, fitnet=FITNET, cwd=CWD, pkd=PKD, mgd=MGD)),
    ),
    'losses-faster_rcnn': (
        'Configurable',
        'faster_rcnn',
        dict(distill_losses=dict(kd=KD, dkd=DKD, box=BOX, fitnet=FITNET, pkd=PKD, vectors=VECTORS)),
    ),
}
# Those whose gradient is the joined batch's. Others compare statistics of the batch on a device, as their authors' do: DIST's
# relations between images, PKD, VkD with 'standardize', CrossKD with 'match_moments'; SoKD draws a policy in each process;
# two-stage detectors sample different numbers of proposals.
JOINED: dict[str, tuple[str, str, dict]] = {
    **{
        name: SETTINGS[name] for name in ('dskd-gap', 'dskd-fcn', 'dskd-retinanet', 'lshfm-gap', 'lshfm-fcn', 'lshfm-retinanet')
    },
    **{name: SETTINGS[name] for name in ('diffkd-gap', 'vkd-gap', 'rtk-gap', 'srrl-gap', 'simkd-gap')},
    'crosskd-retinanet': ('CrossKD', 'retinanet', dict(match_moments=False)),
    'dskd-teacher-gap': ('DSKD', 'gap', dict(prior='teacher', target='local', warmup=0)),
    'dskd-mix-gap': ('DSKD', 'gap', dict(mix=0.5, warmup=0)),
    'dskd-through-gap': ('DSKD', 'gap', dict(detach=False, sampler=dict(noise='adapter'), warmup=0)),
    'diffkd-fcn': ('DiffKD', 'fcn', dict(pairs=dict(logits=dict(distance='kl')))),
    'sokd-gap': ('SoKD', 'gap', dict(site=MAP, augment=False)),
    'losses-gap': (
        'Configurable',
        'gap',
        dict(distill_losses=dict(kd=KD, dkd=DKD, fitnet=FITNET, at=AT, cwd=CWD, mgd=MGD, vectors=VECTORS)),
    ),
    'losses-fcn': (
        'Configurable',
        'fcn',
        dict(distill_losses=dict(kd=KD, dkd=DKD, fitnet=FITNET, at=AT, cwd=dict(**CWD, on='logits'), mgd=MGD)),
    ),
    'losses-retinanet': (
        'Configurable',
        'retinanet',
        dict(distill_losses=dict(kd=KD, box=BOX, fitnet=FITNET, cwd=CWD, mgd=MGD)),
    ),
}


@functools.cache
def base_config(kind: str) -> ConfigDict:
    """Student and teacher of a kind, whose weights are the same in all processes."""
    folder = FOLDER / kind
    folder.mkdir()
    if kind == 'gap':
        return ConfigDict(student=classifier_config(), teacher=random_teacher(str(folder)))
    config = dense_distiller_config(kind, str(folder))
    config.pop('type')
    return config


def build(method: str, kind: str, switches: dict) -> Any:
    config = copy.deepcopy(base_config(kind))
    if method == 'LSHFM' or (method == 'DSKD' and 'lsh' not in switches):
        switches = dict(switches, lsh=dict(bits=128))
    config.update(type=f'dskd_mm.{method}Distiller', noise_seed=7, **(dict(warmup=0) | copy.deepcopy(switches)))
    return build_distiller(config)


def batch_of(model: Any, kind: str, images: Sequence[int], annotated: bool = True) -> dict[str, Any]:
    """The batch of some of all images, numbered over the processes."""
    if kind == 'gap':
        inputs, samples = random_batch(32)
        return dict(inputs=inputs[list(images)], data_samples=[samples[i].clone() for i in images])
    if kind in DETECTORS:
        boxes = [random_boxes(1 + i % 3, seed=i) if annotated else [] for i in images]
        batch = detection_batch(model, boxes, seed=0)
    else:
        labels = torch.full((len(images), *DENSE_SIZE), IGNORED)
        for row, i in enumerate(images):
            # Images have different numbers of ignored pixels, whole ranks as well.
            labels[row, : 10 + 7 * i] = i % DENSE_CLASSES
        batch = segmentation_batch(model, labels if annotated else torch.full_like(labels, IGNORED))
    noise = [torch.randn(3, *DENSE_SIZE, generator=torch.Generator().manual_seed(i)) for i in images]
    return dict(batch, inputs=torch.stack(noise))


def share(count: int, rank: int | None = None) -> list[int]:
    """Numbers of the images of this process."""
    rank = RANK if rank is None else rank
    return list(range(count * rank, count * (rank + 1)))


def wrap(model: nn.Module) -> MMDistributedDataParallel:
    return MMDistributedDataParallel(model, device_ids=None, broadcast_buffers=False, find_unused_parameters=False)


def spread(tensor: Tensor) -> float:
    """How far a tensor differs between the processes."""
    tensor = tensor.detach().double()
    everywhere = [torch.empty_like(tensor) for _ in range(WORLD)]
    torch.distributed.all_gather(everywhere, tensor.contiguous())
    return max(float((other - everywhere[0]).abs().max()) if other.numel() else 0.0 for other in everywhere)


def assert_equal_everywhere(tensors: dict[str, Tensor]) -> None:
    unequal = {name: found for name, tensor in tensors.items() if (found := spread(tensor)) != 0}
    assert tensors and not unequal, f'differ between processes: {unequal}'


def losses_of(model: Any, found: dict[str, Any], ours_only: bool) -> Tensor:
    """Sum of the losses; of the student's own only the graph, if ours alone count."""
    base = model.module if hasattr(model, 'module') else model
    plain = {name for name in found if name.startswith(('loss_dskd', 'loss_diffkd', 'loss_lshfm', 'loss_vkd', 'loss_sokd'))}
    plain |= {name for name in found if name.startswith(('loss_rtk', 'loss_srrl', 'loss_simkd', 'loss_crosskd'))} | {
        f'loss_{name}' for name in base.distill_losses
    }
    if not ours_only:
        return base.parse_losses(found)[0]
    own = base.parse_losses({name: value for name, value in found.items() if name in plain})[0]
    rest = base.parse_losses({name: value for name, value in found.items() if name not in plain})[0]
    return own + 0 * rest


class Impossible(Exception):
    """A check that these versions do not allow."""


# ------------------------------------------------------------------------------------------------------- the checks


def check_nothing_is_unused(setting: str) -> None:
    """Three steps under DDP with find_unused_parameters=False, in the second of which one process has no annotation at all."""
    method, kind, switches = SETTINGS[setting]
    distiller = build(method, kind, switches)
    model = wrap(distiller)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    for step in range(3):
        annotated = not (step == 1 and RANK == WORLD - 1)
        found = model(**batch_of(distiller, kind, share(2 if kind == 'gap' else 1), annotated), mode='loss')
        loss = losses_of(model, found, ours_only=False)
        assert bool(loss.isfinite()), {name: value for name, value in found.items() if 'loss' in name}
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert_equal_everywhere(dict(distiller.named_parameters()))
    # The images differ, so what is equal has been shared; batch norms are each process's own, as everywhere in mmengine.
    shared = ('lsh.', 'lsh_share.', 'diffusion.std', 'augment.', 'noise_seed', 'iteration')
    buffers = {name: value for name, value in distiller.named_buffers() if name.startswith(shared)}
    assert_equal_everywhere(buffers)
    if 'lsh.center' in buffers and distiller.lsh.bias != 'zero':
        assert int(buffers['lsh.num_batches']) == 3 and bool(buffers['lsh.center'].any())
    if 'diffusion.std' in buffers:
        assert 0 < float(buffers['diffusion.std']) < 100
    if 'lsh_share.norms' in buffers:
        assert bool((buffers['lsh_share.norms'] > 0).all())
    if 'augment.policy' in buffers:
        assert int(buffers['augment.updates']) == 3


class JoinedBatchNorm(nn.BatchNorm2d):
    """Batch norm over all processes: what SyncBatchNorm does, which torch has for accelerators only."""

    def forward(self, input: Tensor) -> Tensor:
        def joined_mean(values: Tensor) -> Tensor:
            mean = values.mean((0, 2, 3), keepdim=True)
            return all_reduce(mean) / WORLD if torch.distributed.is_initialized() else mean

        centered = input - joined_mean(input)
        scale = (joined_mean(centered.square()) + self.eps).rsqrt()
        return centered * scale * self.weight[:, None, None] + self.bias[:, None, None]


def make_comparable(module: nn.Module) -> None:
    """Batch norms over all processes, and no dropout, whose randomness is torch's own."""
    for parent in module.modules():
        for name, child in parent.named_children():
            if isinstance(child, nn.modules.dropout._DropoutNd):
                child.p = 0.0
            if isinstance(child, nn.BatchNorm2d) and child.affine:
                joined = JoinedBatchNorm(child.num_features, eps=child.eps)
                joined.load_state_dict(child.state_dict())
                setattr(parent, name, joined.train(child.training))


@contextmanager
def drawn_for_all(local: int) -> Iterator[None]:
    """Every draw from a generator is made for the joined batch, of which a process takes its own images."""
    drawing = {name: getattr(torch, name) for name in ('rand', 'randn', 'randint')}

    def patched(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def drawn(*args: Any, **kwargs: Any) -> Tensor:
            if kwargs.get('generator') is None or not torch.distributed.is_initialized():
                return draw(*args, **kwargs)
            *bounds, size = args if isinstance(args[-1], (tuple, list)) else (args,)
            axis = list(size).index(local)
            whole = [length * WORLD if i == axis else length for i, length in enumerate(size)]
            return draw(*bounds, tuple(whole), **kwargs).narrow(axis, local * RANK, local)

        return drawn

    try:
        for name, draw in drawing.items():
            setattr(torch, name, patched(draw))
        yield
    finally:
        for name, draw in drawing.items():
            setattr(torch, name, draw)


@contextmanager
def alone() -> Iterator[None]:
    """As if there were one process."""
    before = torch.distributed.is_initialized
    torch.distributed.is_initialized = lambda: False
    try:
        yield
    finally:
        torch.distributed.is_initialized = before


def check_gradient(setting: str) -> None:
    """The gradient of all processes together is that of one process on the joined batch."""
    method, kind, switches = JOINED[setting]
    local = 3 if kind == 'gap' else 1
    distiller = build(method, kind, switches)
    distiller.noise_generator = lambda device, *key: torch.Generator(device).manual_seed(5 + sum(key))
    make_comparable(distiller)
    single = build(method, kind, switches)
    single.load_state_dict(distiller.state_dict())
    single.noise_generator = distiller.noise_generator
    make_comparable(single)

    model = wrap(distiller)
    mine, joined = batch_of(distiller, kind, share(local)), batch_of(single, kind, range(local * WORLD))
    for _ in range(2):  # running statistics of the first step enter the second
        model.zero_grad()
        with drawn_for_all(local):
            found = model(**copy.deepcopy(mine), mode='loss')
        losses_of(model, found, ours_only=True).backward()
    with alone():
        for _ in range(2):
            single.zero_grad()
            found = single(**copy.deepcopy(joined), mode='loss')
            losses_of(single, found, ours_only=True).backward()
    wrong, moved = {}, 0
    for (name, ours), theirs in zip(distiller.named_parameters(), single.parameters(), strict=True):
        if not ours.requires_grad:  # frozen stages
            continue
        scale = float(theirs.grad.abs().max())
        moved += scale > 0
        error = float((ours.grad - theirs.grad).abs().max())
        if error > 2e-3 * scale + 1e-6:
            wrong[name] = (error, scale)
    assert moved > 5, 'nothing to compare'
    assert not wrong, f'{len(wrong)} of {moved} gradients differ (error, size): {wrong}'
    for name in ('lsh.center', 'feature_std'):
        states = distiller.state_dict(), single.state_dict()
        if name in states[0]:
            torch.testing.assert_close(states[0][name], states[1][name], rtol=1e-3, atol=1e-5)


def check_noise() -> None:
    """Processes of one seed draw different noise, in every step anew, and equal projections."""
    distiller = build('DSKD', 'gap', {})
    draw = torch.rand(8, generator=distiller.noise_generator(torch.device('cpu')))
    everywhere = [torch.empty_like(draw) for _ in range(WORLD)]
    torch.distributed.all_gather(everywhere, draw)
    assert len({tuple(row.tolist()) for row in everywhere}) == WORLD
    assert_equal_everywhere({'projection': distiller.lsh.projection, 'seed': distiller.noise_seed})


def check_std() -> None:
    """The deviation of the joined batch, though processes have different numbers of elements, and the last one none."""
    rows = [torch.randn(5 + 3 * rank, generator=torch.Generator().manual_seed(rank)) * 3 + 40 for rank in range(WORLD - 1)]
    found = std_over_ranks(rows[RANK] if RANK < WORLD - 1 else torch.empty(0))
    torch.testing.assert_close(found, torch.cat(rows).std(), rtol=1e-4, atol=0)


# What docs/en/scale.md says of a step: bytes of each reduction but DDP's own.
COUNT, WEIGHTS, SPREAD, GATE, SHARE = 4, 4, 24, 8, 8
CENTER = -1  # 4 (C + 1), by the width of the teacher's features
TRAFFIC = {
    'dskd-gap': [SPREAD, WEIGHTS, CENTER, GATE, SHARE],
    'dskd-fcn': [COUNT, COUNT, SPREAD, WEIGHTS, CENTER, GATE, SHARE],
    'dskd-retinanet': [COUNT, COUNT, SPREAD, WEIGHTS, CENTER, GATE, SHARE],
    'lshfm-gap': [WEIGHTS],
    'diffkd-gap': [],
    'vkd-gap': [],
    'sokd-gap': [36 * 5 * 4],
    'rtk-gap': [],
    'losses-fcn': [COUNT],
}


def check_traffic() -> None:
    """What processes tell each other in a step beside the gradients."""
    plain, sent = torch.distributed.all_reduce, []

    def counted(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
        sent.append(tensor.numel() * tensor.element_size())
        return plain(tensor, *args, **kwargs)

    torch.distributed.all_reduce = counted
    try:
        for setting, expected in TRAFFIC.items():
            method, kind, switches = SETTINGS[setting]
            distiller = build(method, kind, switches)
            sent.clear()
            distiller(**batch_of(distiller, kind, share(1 if kind != 'gap' else 2)), mode='loss')
            center = 4 * (distiller.teacher_spec.channels + 1)
            assert sent == [center if size == CENTER else size for size in expected], (setting, sent)
    finally:
        torch.distributed.all_reduce = plain


def check_windows() -> None:
    """One process has images that need a window, the others smaller ones: all of them meet at the same places."""
    distiller = build('DSKD', 'fcn', dict(window=3))
    counts = watch(distiller.site, 'target_within')
    batch = batch_of(distiller, 'fcn', share(1))
    if RANK:
        batch['inputs'] = batch['inputs'][..., :32, :64]
        (sample,) = batch['data_samples']
        sample.gt_sem_seg = PixelData(data=sample.gt_sem_seg.data[..., :32, :64])
    model = wrap(distiller)
    for _ in range(2):
        model.zero_grad()
        losses_of(model, model(**copy.deepcopy(batch), mode='loss'), ours_only=False).backward()
    assert [call.args[0] is None for call in counts] == [RANK > 0] * 2
    assert_equal_everywhere({f'count {i}': call.result.avg_factor for i, call in enumerate(counts)})
    trained = {name: parameter for name, parameter in distiller.named_parameters() if parameter.requires_grad}
    assert_equal_everywhere({name: parameter.grad for name, parameter in trained.items()})


class Weights(Hook):
    """Keeps the first weight after each iteration, and the images of the first."""

    def __init__(self) -> None:
        self.seen: list[Tensor] = []
        self.images: list[Tensor] = []

    def after_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self.images = self.images or list(data_batch['inputs'])
        self.seen.append(next(runner.model.parameters()).detach().clone())


def run_config(name: str, **options: Any) -> Config:
    """Config of one epoch of 4 iterations."""
    work_dir = FOLDER / name
    work_dir.mkdir()
    cfg = distiller_run_config(str(work_dir), lsh=dict(bits=64))
    # All processes write to the folder of the first.
    shared = [str(work_dir)]
    torch.distributed.broadcast_object_list(shared)
    cfg.work_dir = shared[0]
    cfg.merge_from_dict(
        {
            'launcher': 'pytorch',
            'train_cfg.max_epochs': 1,
            'train_dataloader.batch_size': 16 // WORLD,
            'train_dataloader.dataset.num_images': 64,
            'val_cfg': None,
            'val_dataloader': None,
            'val_evaluator': None,
            'test_cfg': None,
            'test_dataloader': None,
            'test_evaluator': None,
            'default_hooks.checkpoint.save_best': None,
            **{key.replace('__', '.'): value for key, value in options.items()},
        }
    )
    cfg.experiment_name = name
    return cfg


def run(name: str, custom_hooks: Sequence[Any] = (), **options: Any) -> tuple[Any, list[Tensor]]:
    """A whole training under mmengine's runner, by what tools/train.py calls."""
    cfg = run_config(name, **options)
    cfg.custom_hooks = list(custom_hooks)
    runner = build_runner(cfg)
    weights = Weights()
    runner.register_hook(weights)
    runner.train()
    model = runner.model.module
    assert all(bool(value.isfinite().all()) for value in model.state_dict().values())
    assert_equal_everywhere(dict(model.named_parameters()))
    shares: list[Any] = [None] * WORLD
    torch.distributed.all_gather_object(shares, {image.numpy().tobytes() for image in weights.images})
    assert len(set.union(*shares)) == WORLD * len(weights.images), 'processes saw the same images'
    return runner, weights.seen


def saved(runner: Any) -> dict[str, Tensor]:
    torch.distributed.barrier()
    return load_checkpoint_file(str(Path(runner.work_dir) / 'epoch_1.pth'))['state_dict']


def check_runner() -> None:
    """Clipping and a checkpoint, written once, of the weights that all processes have."""
    runner, _ = run('plain', optim_wrapper__clip_grad=dict(max_norm=1.0))
    state = saved(runner)
    assert not [name for name in state if name.startswith(('module.', 'teacher'))]
    for name, parameter in runner.model.module.named_parameters():
        assert torch.equal(state[name], parameter), name
    norms = runner.message_hub.get_scalar('train/grad_norm').data[0]
    assert len(norms) == 4


def check_ema() -> None:
    """Averages are equal in all processes and are what is saved."""
    runner, _ = run('ema', custom_hooks=[dict(type='EMAHook', momentum=0.3)])
    (hook,) = [hook for hook in runner.hooks if type(hook).__name__ == 'EMAHook']
    averaged = dict(hook.ema_model.named_parameters())
    assert_equal_everywhere(averaged)
    state = saved(runner)
    for name, parameter in hook.ema_model.module.named_parameters():
        name = name.removeprefix('module.')
        assert torch.equal(state[name], parameter), name
        if name.endswith('conv1.weight'):
            assert not torch.equal(parameter, dict(runner.model.module.named_parameters())[name])


def check_accumulation() -> None:
    """Weights move in every second iteration, alike everywhere, in bfloat16 and with clipping."""
    runner, seen = run(
        'accumulation',
        optim_wrapper__type=BF16OptimWrapper,
        optim_wrapper__accumulative_counts=2,
        optim_wrapper__clip_grad=dict(max_norm=1.0),
    )
    moved = [not torch.equal(left, right) for left, right in itertools.pairwise(seen)]
    assert moved == [True, False, True], moved
    assert {parameter.dtype for parameter in runner.model.parameters()} == {torch.float32}


def check_sync_bn() -> None:
    """mmengine's conversion reaches student and modules and leaves the teacher alone."""
    config = copy.deepcopy(base_config('gap'))
    distiller = MODELS.build(ConfigDict(type='dskd_mm.DSKDDistiller', **config))
    distiller.load_teacher()
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in distiller.modules())
    teacher = sum(isinstance(module, nn.BatchNorm2d) for module in distiller.teacher.model.modules())
    converted = convert_sync_batchnorm(distiller, 'torch')
    assert norms == sum(isinstance(module, nn.SyncBatchNorm) for module in converted.modules()) > 0
    assert teacher == sum(isinstance(module, nn.BatchNorm2d) for module in converted.teacher.model.modules()) > 0
    assert not any(isinstance(module, nn.SyncBatchNorm) for module in converted.teacher.model.modules())
    converted.eval()(random_batch()[0])


class Spoil(Hook):
    """Makes one process's images NaN in one iteration."""

    def __init__(self, iteration: int, rank: int) -> None:
        self.iteration, self.rank = iteration, rank

    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        if batch_idx == self.iteration and self.rank == RANK:
            data_batch['inputs'] = data_batch['inputs'].float() * float('nan')


def check_stop() -> None:
    """NaN in one process: it tells what and where, and has saved its batch; the others know by the weights."""
    try:
        run('stop', custom_hooks=[CheckFiniteHook(), Spoil(2, WORLD - 1)])
    except FloatingPointError as error:
        told = str(error)
    else:
        raise AssertionError('it went on')
    cause = "images (NaN), input of 'neck' in the student (NaN)" if RANK == WORLD - 1 else 'weights after the step (NaN)'
    assert f'At iteration 3 of rank {RANK}' in told and cause in told, told
    path = told.partition('saved to ')[2].partition(': ')[0]
    batch = torch.load(path, weights_only=False)['batch']
    assert len(batch['inputs']) == len(batch['data_samples']) == 16 // WORLD
    assert not list(Path(path).parent.glob('epoch_*.pth'))


def check_fsdp() -> None:
    """Parameters in shards, those of the student's blocks apart: mmengine's FlexibleRunner trains and saves a plain state."""
    try:
        torch.cpu.Stream(priority=0)
    except TypeError:
        raise Impossible('this torch shards on accelerators only') from None
    from torch.distributed.fsdp import FullOptimStateDictConfig, FullStateDictConfig, FullyShardedDataParallel
    from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

    from dskd_mm.backbones.cifar_resnet import BasicBlock

    cfg = run_config('fsdp')
    cfg.env_cfg = dict(dist_cfg=dict(backend='gloo'))
    cfg.custom_hooks = [dict(type='dskd_mm.CheckFiniteHook'), dict(type='dskd_mm.StudentExportHook')]
    # On CPUs offloading frees what it should copy: torch ends with a segmentation fault.
    whole = dict(offload_to_cpu=False, rank0_only=False)
    cfg.strategy = dict(
        type='FSDPStrategy',
        model_wrapper=dict(
            type='MMFullyShardedDataParallel',
            device_id=torch.device('cpu'),
            use_orig_params=True,
            auto_wrap_policy=dict(type=transformer_auto_wrap_policy, transformer_layer_cls={BasicBlock}),
        ),
        state_dict_cfg=dict(
            state_dict_type='FULL_STATE_DICT',
            state_dict_config=FullStateDictConfig(**whole),
            optim_state_dict_config=FullOptimStateDictConfig(**whole),
        ),
    )
    runner = FlexibleRunner.from_cfg(cfg)
    runner.train()
    assert sum(isinstance(module, FullyShardedDataParallel) for module in runner.model.modules()) == 4
    shards = sum(parameter.numel() for parameter in runner.model.parameters())
    state = saved(runner)
    plain = MODELS.build(run_config('fsdp_plain').model)
    plain.load_state_dict(state, strict=True)
    everything = sum(parameter.numel() for parameter in plain.parameters())
    assert Path(runner.work_dir, 'student_last.pth').is_file()
    assert shards < 0.7 * everything, (shards, everything)
    assert all(bool(value.isfinite().all()) for value in state.values())
    assert int(state['iteration']) == 4 and int(state['lsh.num_batches']) == 4


def checks(everything: bool) -> dict[str, Callable[[], None]]:
    """All checks by name, or what depends on the number of processes, each of which takes seconds to start."""
    few = ('dskd-gap', 'lshfm-gap', 'sokd-gap')
    unused = {name: case for name, case in SETTINGS.items() if everything or name in few}
    joined = {name: case for name, case in JOINED.items() if everything or name in few}
    runs = dict(stop=check_stop, runner=check_runner, ema=check_ema, accumulation=check_accumulation, fsdp=check_fsdp)
    return {
        'noise': check_noise,
        'std': check_std,
        **{f'unused-{name}': functools.partial(check_nothing_is_unused, name) for name in unused},
        **{f'gradient-{name}': functools.partial(check_gradient, name) for name in joined},
        'windows': check_windows,
        **({'traffic': check_traffic, 'sync_bn': check_sync_bn, **runs} if everything else {}),
    }


def work(rank: int, world: int, port: str, args: argparse.Namespace) -> None:
    """What one process does."""
    global FOLDER, RANK, WORLD
    RANK, WORLD = rank, world
    # As torchrun sets them.
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(WORLD), MASTER_ADDR='127.0.0.1', MASTER_PORT=port)
    # A process that fails leaves the others waiting: not for long.
    torch.distributed.init_process_group('gloo', timeout=datetime.timedelta(seconds=600))
    FOLDER = Path(tempfile.mkdtemp(dir=args.folder))
    results: dict[str, Any] = {}
    for name, check in checks(everything=WORLD == 2 or args.all).items():
        if args.only not in name:
            continue
        began = time.monotonic()
        try:
            check()
            results[name] = None
        except Impossible as reason:
            results[name] = f'impossible: {reason}'
        except Exception:
            results[name] = traceback.format_exc(limit=-6)
        results[name] = dict(error=results[name], seconds=round(time.monotonic() - began, 2))
        (args.folder / f'rank_{RANK}_of_{WORLD}.json').write_text(json.dumps(results))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('folder', type=Path)
    parser.add_argument('--processes', type=int, nargs='+', default=[2], help='numbers of processes, one after the other')
    parser.add_argument('--only', default='', help='part of the names of the checks to run')
    parser.add_argument('--all', action='store_true', help='run all checks with more than two processes, too')
    args = parser.parse_args()
    for host in ('mmdet', 'mmpretrain', 'mmseg'):
        importlib.import_module(f'{host}.models')  # here, where it is paid for once
    for world in args.processes:
        start_processes(work, (world, free_port(), args), nprocs=world, start_method='fork')


if __name__ == '__main__':
    main()
