"""Odd numbers: half precision, what is NaN or infinite, and the smallest shapes there are."""

import copy
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from many_processes import SETTINGS, STAGES
from mmengine.config import Config, ConfigDict
from mmengine.hooks import Hook
from mmengine.optim import OptimWrapper
from mmengine.runner import Runner
from mmengine.structures import PixelData
from torch import Tensor

from dskd_mm.hooks import CheckFiniteHook
from dskd_mm.hooks.check_finite import Step
from dskd_mm.testing import classifier_config, parameters_without_gradient, random_batch, random_teacher
from support import (
    DENSE_SIZE,
    build_distiller,
    dense_distiller_config,
    detection_batch,
    distiller_run_config,
    random_boxes,
    segmentation_batch,
    toy_runner,
)

NAN, INF = float('nan'), float('inf')
GradScaler = getattr(torch.amp, 'GradScaler', None)
"""That for any device, which torch has since 2.3."""


# ---------------------------------------------------------------------------------------------------- half precision


@pytest.mark.parametrize('iterations', [100, pytest.param(1000, marks=pytest.mark.soak)])
@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16], ids=['bfloat16', 'float16'])
def test_many_iterations_in_half_precision(tmp_path: Path, dtype: torch.dtype, iterations: int) -> None:
    if dtype == torch.float16 and GradScaler is None:
        pytest.skip('this torch has no float16 on CPUs')
    config = ConfigDict(type='dskd_mm.DSKDDistiller', lsh=dict(bits=64), sampler=dict(steps=2), warmup=0)
    config.update(student=classifier_config(image_size=8), teacher=random_teacher(str(tmp_path), image_size=8))
    distiller = build_distiller(config)
    distiller.magnitudes = {}
    images, samples = random_batch(image_size=8)
    optimizer = torch.optim.SGD(distiller.parameters(), lr=0.01, momentum=0.9)
    scaler = GradScaler('cpu') if dtype == torch.float16 else None
    losses, taken = [], []
    for step in range(iterations):
        with torch.autocast('cpu', dtype):
            # Images of any contrast.
            loss, _ = distiller.parse_losses(distiller(images * (0.1 + 5 * (step % 7)), samples, mode='loss'))
        losses.append(loss.detach())
        optimizer.zero_grad()
        if scaler is None:
            loss.backward()
            optimizer.step()
        else:
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            taken.append(scaler.get_scale())
    # Of all features of both models and all losses the largest values of all iterations.
    assert len(distiller.magnitudes) > 8
    assert {name: value for name, value in distiller.magnitudes.items() if not bool(value.isfinite())} == {}
    assert [name for name, value in distiller.state_dict().items() if not bool(value.isfinite().all())] == []
    tenth = iterations // 10
    assert torch.stack(losses[-tenth:]).mean() < torch.stack(losses[:tenth]).mean()
    # The scale of gradients has settled, and hardly any step was left out for it.
    assert not taken or (min(taken) >= 256 and sum(right < left for left, right in pairwise(taken)) < 10)


# ----------------------------------------------------------------------------------------- what is NaN or infinite


class SpoilHook(Hook):
    """Makes something not finite in some iterations, from 1."""

    def __init__(self, place: str, iterations: tuple[int, ...], value: float = NAN) -> None:
        self.place, self.iterations, self.value = place, iterations, value
        self.now = False
        self.weights: list[Tensor] = []
        self.buffers: list[list[Tensor]] = []

    def before_train(self, runner: Runner) -> None:
        distiller = runner.model
        distiller.load_teacher()

        def spoil(tensor: Tensor) -> Tensor:
            return tensor * self.value if self.now else tensor

        def spoil_output(module: Any, args: Any, output: Any) -> Any:
            return tuple(map(spoil, output)) if isinstance(output, tuple) else spoil(output)

        if self.place == 'feature':
            distiller.student.backbone.layer2.register_forward_hook(spoil_output)
        elif self.place == 'teacher':
            distiller.teacher.model.backbone.register_forward_hook(spoil_output)
        elif self.place == 'loss':
            plain = distiller.student.head.loss
            distiller.student.head.loss = lambda *args, **kwargs: dict(loss=plain(*args, **kwargs)['loss'] + 0 + spoil_zero())
        elif self.place == 'gradient':
            distiller.student.head.fc.weight.register_hook(spoil)

        def spoil_zero() -> float:
            return self.value if self.now else 0.0

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        self.now = runner.iter + 1 in self.iterations
        if self.now and self.place == 'images':
            data_batch['inputs'] = data_batch['inputs'] * self.value

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        self.weights.append(runner.model.student.head.fc.weight.detach().clone())
        self.buffers.append([value.clone() for value in runner.model.buffers() if value.is_floating_point()])


def train(
    config: Config, work_dir: Path, place: str, iterations: tuple[int, ...], hook: Any, value: float = NAN, **options: Any
) -> tuple[Runner, SpoilHook]:
    spoiler = SpoilHook(place, iterations, value)
    runner = toy_runner(config, work_dir=str(work_dir), custom_hooks=[hook, spoiler], train_cfg__max_epochs=1, **options)
    (spoiler,) = [hook for hook in runner.hooks if isinstance(hook, SpoilHook)]
    runner.train()
    return runner, spoiler


@pytest.fixture(scope='module')
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """An epoch of four iterations, saved after each."""
    cfg = distiller_run_config(str(tmp_path_factory.mktemp('run')), lsh=dict(bits=64))
    cfg.val_cfg = cfg.val_dataloader = cfg.val_evaluator = None
    cfg.default_hooks.checkpoint = dict(type='CheckpointHook', interval=1, by_epoch=False)
    return cfg


STOP = dict(type='dskd_mm.CheckFiniteHook')
PLACES = {
    'images': (NAN, "got images (NaN), input of 'neck' in the student (NaN)"),
    'feature': (INF, "got input of 'neck' in the student (NaN)"),
    'teacher': (NAN, "got input of 'neck' in the teacher (NaN)"),
    'loss': (INF, "got loss 'loss' (infinite)."),
    'gradient': (NAN, 'got weights after the step (NaN).'),
}


@pytest.mark.parametrize('place', PLACES)
def test_training_stops_by_name_and_keeps_the_batch(config: Config, tmp_path: Path, place: str) -> None:
    value, words = PLACES[place]
    with pytest.raises(FloatingPointError) as caught:
        train(config, tmp_path, place, (3,), STOP, value)
    message = str(caught.value)
    assert 'At iteration 3 of rank 0' in message and words in message, message
    assert 'clip_grad' in message
    path = tmp_path / 'not_finite_iter_3_rank_0.pth'
    assert str(path) in message
    saved = torch.load(path, weights_only=False)
    assert saved['iteration'] == 3 and saved['batch']['inputs'].shape == (8, 3, 16, 16)
    assert [sample.gt_label.shape for sample in saved['batch']['data_samples']] == [(1,)] * 8
    assert {path.name for path in tmp_path.glob('iter_*.pth')} == {'iter_1.pth', 'iter_2.pth'}


class LateHook(CheckFiniteHook):
    """Sees figures as on a GPU: one iteration late."""

    waited = 0

    def _take(self, iteration: int, batch: Any) -> Step:
        step = super()._take(iteration, batch)
        step.ready = self
        return step

    def synchronize(self) -> None:
        self.waited += 1


@pytest.mark.parametrize('interval', [10, 1])
def test_on_a_gpu_it_stops_one_iteration_later_but_before_it_saves(config: Config, tmp_path: Path, interval: int) -> None:
    options = dict(default_hooks__checkpoint__interval=interval)
    with pytest.raises(FloatingPointError, match='At iteration 2 of rank 0'):
        train(config, tmp_path, 'images', (2,), LateHook(), **options)
    assert torch.load(tmp_path / 'not_finite_iter_2_rank_0.pth', weights_only=False)['batch']['inputs'].isnan().all()
    assert {path.name for path in tmp_path.glob('iter_*.pth')} == ({'iter_1.pth'} if interval == 1 else set())
    with pytest.raises(FloatingPointError, match='At iteration 4 of rank 0'):  # the last one
        train(config, tmp_path, 'images', (4,), LateHook(), **options)


class ScalingOptimWrapper(OptimWrapper):
    """mmengine's AmpOptimWrapper with a loss scaler, on a CPU."""

    def __init__(self, scale: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.scaler = GradScaler('cpu', init_scale=scale)

    def backward(self, loss: Tensor, **kwargs: Any) -> None:
        self.scaler.scale(loss).backward(**kwargs)
        self._inner_count += 1

    def step(self, **kwargs: Any) -> None:
        self.scaler.step(self.optimizer)
        self.scaler.update()


@pytest.mark.skipif(GradScaler is None, reason='this torch has no loss scaler on CPUs')
def test_too_large_a_loss_scale_is_the_scalers_own_affair(config: Config, tmp_path: Path) -> None:
    options = dict(optim_wrapper__type=ScalingOptimWrapper, optim_wrapper__scale=2.0**127)
    runner, _ = train(config, tmp_path, 'nothing', (), STOP, **options)
    assert runner.optim_wrapper.scaler.get_scale() < 2.0**127
    with pytest.raises(FloatingPointError, match='At iteration 3'):
        train(config, tmp_path, 'images', (3,), STOP, **options)


def test_a_hook_leaves_the_model_as_it_was(config: Config, tmp_path: Path) -> None:
    runner, _ = train(config, tmp_path, 'nothing', (), STOP)
    assert runner.model.magnitudes is None


def test_a_batch_that_cannot_be_saved_hides_no_error(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, 'No space left on device')

    cfg = copy.deepcopy(config)
    cfg.default_hooks.checkpoint.interval = 10
    monkeypatch.setattr(torch, 'save', full)
    with pytest.raises(FloatingPointError, match=r'images \(NaN\).*could not be saved.*No space left.*clip_grad'):
        train(cfg, tmp_path, 'images', (1,), STOP)


# ------------------------------------------------------------------------------------------------- the smallest shapes

MORE = {'vkd-fcn': ('VkD', 'fcn', {}), 'sokd-fcn': ('SoKD', 'fcn', {}), 'rtk-fcn': ('RTK', 'fcn', dict(layers=STAGES))}
WITH_SHAPES = {name: case for name, case in {**SETTINGS, **MORE}.items() if name != 'dskd-detr'}
GN = dict(norm='GN')
VECTORS_OF_ONE_IMAGE = {
    'diffkd-gap': dict(pairs=dict(feature={}, logits=dict(**GN, output=GN))),
    'rtk-gap': dict(layers=STAGES, norm='GN'),
}
"""What has batch norms on vectors takes another norm for one image."""
SEVERAL_CLASSES = ('dkd', 'dist')
"""Losses that are refused for one class."""


def shapes(edge: str) -> list[str]:
    found = []
    for name, (_, kind, _) in WITH_SHAPES.items():
        # Images have a label each; the top levels of a pyramid are of one pixel anyway.
        if (edge != 'ignored' or kind != 'gap') and (edge != 'pixel' or kind in ('gap', 'fcn')):
            found.append(name)
    return found


def test_a_batch_norm_of_a_single_vector_is_told(tmp_path: Path) -> None:
    student, teacher = classifier_config('vit'), random_teacher(str(tmp_path), kind='vit')
    distiller = build_distiller(ConfigDict(type='dskd_mm.DSKDDistiller', student=student, teacher=teacher))
    with pytest.raises(ValueError, match=r'batch norm of DSKDDistiller .*single image.*drop_last=True.*align.norm=GN'):
        distiller(*random_batch(1), mode='loss')


@pytest.mark.skipif(not all(map(find_spec, ('mmpretrain', 'mmdet', 'mmseg'))), reason='a host is not installed')
@pytest.mark.parametrize(
    ('edge', 'name'), [(edge, name) for edge in ('image', 'class', 'pixel', 'ignored') for name in shapes(edge)]
)
def test_the_smallest_shapes(tmp_path: Path, edge: str, name: str) -> None:
    method, kind, switches = copy.deepcopy(WITH_SHAPES[name])
    images = 1 if edge == 'image' else 2
    size = 4 if edge == 'pixel' else 16
    classes = dict(num_classes=1) if edge == 'class' else {}
    if edge == 'image':
        switches.update(VECTORS_OF_ONE_IMAGE.get(name, {}))
    if edge == 'class':
        for loss in SEVERAL_CLASSES:
            switches.get('distill_losses', {}).pop(loss, None)
        if kind == 'fcn':
            kind, classes = 'binary', {}
    if edge == 'pixel' and method == 'Configurable':
        for loss in ('at', 'cwd', 'mgd'):  # which say nothing of one location, and are refused
            switches['distill_losses'].pop(loss)
    if method in ('DSKD', 'LSHFM'):
        switches['lsh'] = dict(bits=64)
    if kind == 'gap':
        teacher = random_teacher(str(tmp_path), image_size=size, **classes)
        config = ConfigDict(student=classifier_config(image_size=size, **classes), teacher=teacher)
    else:
        config = dense_distiller_config(kind, str(tmp_path), student=classes, teacher=classes)
    config.update(type=f'dskd_mm.{method}Distiller', noise_seed=0, **switches)
    distiller = build_distiller(config)
    if kind == 'gap':
        inputs, samples = random_batch(images, image_size=size, **classes)
        batch = dict(inputs=inputs, data_samples=samples)
    elif kind in ('fcn', 'binary'):
        labels = torch.zeros(images, *DENSE_SIZE, dtype=torch.long)
        labels[0, 10:30] = 1
        batch = segmentation_batch(distiller, torch.full_like(labels, 255) if edge == 'ignored' else labels)
        if edge == 'pixel':
            batch['inputs'] = batch['inputs'][..., :8, :8]
            for sample in batch['data_samples']:
                sample.gt_sem_seg = PixelData(data=sample.gt_sem_seg.data[..., 8:16, :8])
    else:
        boxes = [[] if edge == 'ignored' else random_boxes(2, seed=i, **classes) for i in range(images)]
        batch = detection_batch(distiller, boxes)
    total, log = distiller.parse_losses(distiller(**batch, mode='loss'))
    # The hosts' own figures may be undefined where nothing is labelled.
    ours = {key: value for key, value in log.items() if not key.startswith(('decode.', 'aux.'))}
    assert all(bool(value.isfinite().all()) for value in ours.values()), ours
    total.backward()
    gradients = {name: p.grad for name, p in distiller.named_parameters() if p.requires_grad}
    unused = {name for name, gradient in gradients.items() if gradient is None}
    if unused:
        assert unused == {f'student.{name}' for name in parameters_without_gradient(distiller.student, batch)}
    assert [name for name, gradient in gradients.items() if name not in unused and not bool(gradient.isfinite().all())] == []
