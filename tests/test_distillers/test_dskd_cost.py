"""What bounds DSKD's cost: windows, intervals, a light teacher or none, and steps that wait for no device."""

import gc
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import dskd_mm
from dskd_mm.features import Pyramid
from dskd_mm.functional import target_cross_entropy
from dskd_mm.guidance import ClassifierGuide
from dskd_mm.testing import (
    assert_distils,
    assert_nothing_is_unused,
    classifier_config,
    distillation_losses,
    random_batch,
    random_teacher,
)
from support import (
    DENSE_CLASSES,
    DENSE_SIZE,
    build_distiller,
    dense_distiller_config,
    detection_batch,
    random_boxes,
    segmentation_batch,
    watch,
)

TEACHER_FREE = dict(target='label', loss_weights=dict(logit=0))
HOSTS = dict(retinanet='mmdet', gfl='mmdet', rtmdet='mmdet', fcn='mmseg')
DENSE = [kind for kind, host in HOSTS.items() if find_spec(host)]


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> str:
    return str(tmp_path_factory.mktemp('teachers'))


def build(kind: str, folder: str, teacher: dict | None = None, **switches: Any) -> Any:
    if kind != 'images':
        config = dense_distiller_config(kind, folder, noise_seed=3, **switches)
        config.teacher.update(teacher or {})
        return build_distiller(config)
    given = {**random_teacher(folder), **(teacher or {})}
    return build_distiller(
        dict(type='dskd_mm.DSKDDistiller', student=classifier_config(), teacher=given, noise_seed=3, **switches)
    )


def batch_for(distiller: Any, kind: str) -> dict:
    if kind == 'images':
        images, samples = random_batch()
        return dict(inputs=images, data_samples=samples)
    if kind == 'fcn':
        labels = torch.zeros(2, *DENSE_SIZE, dtype=torch.long)
        labels[:, 20:45], labels[1, :8] = 1, 255
        return segmentation_batch(distiller, labels)
    return detection_batch(distiller, [random_boxes(3), random_boxes(2, seed=1)])


def losses_of(distiller: Any, kind: str) -> dict:
    torch.manual_seed(0)  # of dropout
    return distillation_losses(distiller(**batch_for(distiller, kind), mode='loss'))


# ------------------------------------------------------------------------------------------------ windows


@pytest.mark.parametrize('kind', DENSE)
def test_maps_that_fit_into_the_window_are_taken_whole(folder, kind):
    whole = losses_of(build(kind, folder, window=False), kind)
    for window in (None, 12):  # 64 x 96 pixels at a stride of 8
        assert losses_of(build(kind, folder, window=window), kind) == whole


@pytest.mark.parametrize('kind', DENSE)
def test_anchor_and_sampler_see_the_window_alone(folder, kind):
    distiller = build(kind, folder, window=3)
    samples, aligned = watch(distiller.diffusion.sampler, 'forward'), []
    distiller.align.register_forward_hook(lambda module, args, output: aligned.append(output))
    losses_of(distiller, kind)
    (sample,), (z,) = [call.result for call in samples], aligned
    sizes = [(3, 3) if h * w > 36 else (h, w) for h, w in Pyramid.of(watched_features(distiller, kind)).sizes]
    assert z.shape[2] == sample.shape[2] == sum(h * w for h, w in sizes)
    # The anchor once more, level by level, on the annotations' own weights: the teacher's opinion is that of the window, too.
    distiller = build(kind, folder, window=3, target='label')
    targets, aligned = watch(distiller.site, 'target_within'), []
    distiller.align.register_forward_hook(lambda module, args, output: aligned.append(output))
    losses = losses_of(distiller, kind)
    target = targets[0].result
    pyramid = Pyramid(sizes)
    logits = pyramid.map(distiller.classifiers, aligned[0][..., 0])
    counted = target.weight > 0
    if distiller.teacher_spec.sigmoid:
        counted = counted & (target.probability > 0).any(dim=1, keepdim=True)
    assert float(target.avg_factor) == float(counted.sum())
    expected = target_cross_entropy(logits, target, distiller.teacher_spec.sigmoid)
    torch.testing.assert_close(losses['loss_dskd_anchor'], expected)


def watched_features(distiller: Any, kind: str) -> list[torch.Tensor]:
    """The student's whole features."""
    calls = watch(distiller.site, 'window')
    losses_of(distiller, kind)
    return [torch.empty(1, 1, *size) for size in calls[0].args[0].sizes]


@pytest.mark.parametrize('kind', DENSE)
def test_windows_train_everything(folder, kind):
    distiller = build(kind, folder, window=2)
    batch = batch_for(distiller, kind)
    assert_distils(distiller, batch)
    assert_nothing_is_unused(distiller, batch)


@pytest.mark.parametrize('kind', DENSE[:1])
def test_windows_lie_elsewhere_in_the_next_step_and_around_objects(folder, kind):
    distiller = build(kind, folder, window=2)
    calls = watch(distiller.site, 'window')
    found = []
    for _ in range(12):
        losses_of(distiller, kind)
        call = calls[-1]
        target = call.args[1].probability.amax(dim=1)
        anchors = target.shape[1] // sum(call.args[0].lengths)
        objects = target.unflatten(1, (-1, anchors)).amax(dim=2)
        found.append(bool(objects.gather(1, call.result.indices[0]).any()))
    assert len({tuple(torch.cat(call.result.indices, dim=1).flatten().tolist()) for call in calls}) > 6
    # The finest level has objects in few places: by chance alone windows would hardly meet them.
    assert sum(found) >= 4


def test_windows_need_a_prediction_at_every_location(folder):
    with pytest.raises(ValueError, match=r'window=4 expects a classifier at every location.*ClassificationSite'):
        build('images', folder, window=4)
    with pytest.raises(ValueError, match=r'window .* at least one location, or False, but got -1'):
        build('images', folder, window=-1)


def test_guided_classes_are_a_number_of_classes(folder):
    for wrong in (0, True):
        with pytest.raises(ValueError, match=rf'guided_classes .* at least one class, or False, but got {wrong}'):
            build('images', folder, guided_classes=wrong)


@pytest.mark.parametrize('kind', [kind for kind in DENSE if kind != 'fcn'])
def test_guided_classes_are_those_of_each_image(folder, kind, monkeypatch):
    chosen, select_classes = [], ClassifierGuide.select_classes
    monkeypatch.setattr(ClassifierGuide, 'select_classes', lambda *args: chosen.append(select_classes(*args)) or chosen[-1])
    losses_of(build(kind, folder, guided_classes=1), kind)
    losses_of(build(kind, folder, guided_classes=2), kind)
    (of_two_images, everything) = chosen
    assert len(of_two_images) == 2 < DENSE_CLASSES
    assert everything is None


@pytest.mark.skipif(not find_spec('mmdet'), reason='mmdet is not installed')
def test_guided_classes_need_a_linear_classifier(folder):
    with pytest.raises(ValueError, match=r'guided_classes=8 expects a linear classifier, but NeckSite has none'):
        build_distiller(dense_distiller_config('detr', folder, guided_classes=8))


# ---------------------------------------------------------------------------------------------- intervals


def test_sampling_takes_place_every_so_many_iterations(folder):
    distiller = build('images', folder, sampling_interval=3, loss_weights=dict(virtual=1.0))
    batch, calls = batch_for(distiller, 'images'), watch(distiller.diffusion.sampler, 'forward')
    for iteration in range(7):
        distiller.zero_grad(set_to_none=True)
        losses = distiller(**batch, mode='loss')
        sampled = iteration % 3 == 0
        assert ('loss_dskd_lsh' in losses, 'loss_dskd_virtual' in losses) == (sampled, sampled)
        distiller.parse_losses(losses)[0].backward()
        assert not [name for name, p in distiller.named_parameters() if p.requires_grad and p.grad is None]
    assert len(calls) == 3


@pytest.mark.parametrize(
    ('switches', 'message'),
    [
        (dict(sampling_interval=0), 'sampling_interval .* at least 1, but got 0'),
        (dict(sampling_interval=2, detach=False, sampler=dict(noise='adapter')), 'in every iteration.*sampling_interval=2'),
        (dict(sampler=dict(guidance_interval=0)), 'guidance_interval must be at least 1, but got 0'),
    ],
)
def test_intervals_that_cannot_be_are_refused(folder, switches, message):
    with pytest.raises(ValueError, match=message):
        build('images', folder, **switches)


# ------------------------------------------------------------------------------------------------- teachers


def test_a_teacher_in_half_precision_says_nearly_the_same(folder):
    exact, light = build('images', folder), build('images', folder, teacher=dict(dtype='bfloat16'))
    calls = [watch(distiller, 'distill') for distiller in (exact, light)]
    for distiller in (exact, light):
        distiller(**batch_for(distiller, 'images'), mode='loss')
    theirs, ours = (call[0].args[1].logits for call in calls)
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, theirs, rtol=0.05, atol=0.05)
    assert not torch.equal(ours, theirs)
    kinds = {type(m).__name__: m.weight.dtype for m in light.teacher.model.modules() if getattr(m, 'weight', None) is not None}
    assert kinds['Conv2d'] == kinds['Linear'] == torch.bfloat16
    assert kinds['BatchNorm2d'] == torch.float32
    assert light.classifiers[0].weight.dtype == torch.float32


@pytest.mark.skipif(not find_spec('mmdet'), reason='mmdet is not installed')
@pytest.mark.parametrize('kind', ['detr', 'retinanet'])
def test_the_whole_head_of_a_teacher_in_half_precision_guides(folder, kind):
    site = {} if kind == 'detr' else dict(site=dict(type='dskd_mm.NeckSite'))
    config = dense_distiller_config(kind, folder, **site)
    config.teacher.update(dtype='bfloat16')
    assert_distils(distiller := build_distiller(config), batch_for(distiller, kind))


def test_an_unknown_precision_of_the_teacher_is_refused(folder):
    with pytest.raises(ValueError, match="dtype of a teacher must be 'bfloat16', 'float16' or None, but got 'int8'"):
        build('images', folder, teacher=dict(dtype='int8'))


@pytest.mark.parametrize('kind', ['images', *DENSE])
def test_without_the_teachers_forward_pass_nothing_of_its_backbone_is_in_memory(tmp_path, kind):
    """Found by shapes that occur nowhere else: those of a teacher of a width of its own."""

    def distiller_of(**switches: Any) -> Any:
        if kind == 'images':
            teacher = random_teacher(str(tmp_path), width=10)
            config = dict(type='dskd_mm.DSKDDistiller', student=classifier_config(), teacher=teacher, **switches)
        else:
            config = dense_distiller_config(kind, str(tmp_path), teacher=dict(width=10), **switches)
        distiller = build_distiller(config)
        distiller(**batch_for(distiller, kind), mode='loss')
        return distiller

    def held() -> set[tuple[int, ...]]:
        gc.collect()
        # Not the fake ones of a compiler that ran in this process.
        return {tuple(found.shape) for found in gc.get_objects() if type(found) in (torch.Tensor, torch.nn.Parameter)}

    distiller = distiller_of(**TEACHER_FREE)
    own = {tuple(p.shape) for p in distiller.parameters()}
    state = torch.load(distiller.teacher.checkpoint, weights_only=True)['state_dict']
    alone = {tuple(v.shape) for k, v in state.items() if k.startswith(('backbone', 'neck')) and v.ndim == 4} - own
    assert len(alone) > 3
    del state
    assert distiller.teacher.model is None
    assert not alone & held()
    # The same search finds a teacher that runs.
    other = distiller_of()
    assert other.teacher.model is not None
    assert alone <= held()


# -------------------------------------------------------------------------------------- no waiting for the device

# What reads a tensor's values on the host, or makes a tensor whose size depends on them, or copies a tensor from the host.
WAITING = {'_local_scalar_dense', 'nonzero', 'masked_select', '_unique2', 'unique_dim', 'unique_consecutive', 'lift_fresh'}
PACKAGE = str(Path(dskd_mm.__file__).parent)


class Waiting(TorchDispatchMode):
    """Collects the places in this package that would make an accelerator's step wait."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        by_mask = name in ('index', 'index_put_', 'index_put') and any(
            isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8) for index in args[1]
        )
        if name in WAITING or by_mask:
            self._blame(name)
        return func(*args, **(kwargs or {}))

    def _blame(self, name: str) -> None:
        frame: Any = sys._getframe(2)
        while frame is not None:
            file = frame.f_code.co_filename
            if file.startswith(PACKAGE) and '/testing/' not in file:
                self.found.add(f'{Path(file).name}:{frame.f_lineno} {frame.f_code.co_name}: {name}')
                return
            if 'site-packages/torch' not in file and file != __file__:
                return  # a host's own
            frame = frame.f_back


METHODS = [
    dict(type='dskd_mm.DSKDDistiller'),
    dict(type='dskd_mm.DSKDDistiller', **TEACHER_FREE),
    dict(type='dskd_mm.DSKDDistiller', prior='teacher', lsh=dict(bias='median', magnitude=1.0), warmup=10),
    dict(type='dskd_mm.DSKDDistiller', window=3, autoencoder=dict(latent_channels=8)),
    dict(type='dskd_mm.DiffKDDistiller'),
    dict(type='dskd_mm.LSHFMDistiller'),
    dict(type='dskd_mm.VkDDistiller'),
    dict(type='dskd_mm.SoKDDistiller'),
    dict(type='dskd_mm.RTKDistiller'),
]


@pytest.mark.parametrize('kind', ['images', *DENSE[:1], *DENSE[-1:]])
@pytest.mark.parametrize('method', METHODS, ids=lambda method: '-'.join([method['type'][8:], *list(method)[1:]]))
def test_no_step_waits_for_the_device(folder, kind, method):
    if kind == 'images' and 'window' in method:
        method = {key: value for key, value in method.items() if key != 'window'}
    if kind != 'retinanet' and method['type'] == 'dskd_mm.RTKDistiller':
        pytest.skip('RTK needs several levels or layers')
    distiller = build_method(kind, folder, method)
    batch = batch_for(distiller, kind)
    distiller.parse_losses(distiller(**batch, mode='loss'))[0].backward()  # the first step loads and checks
    # It looks at values on the CPU alone, and says so by the device.
    distiller.site.check = lambda *args: None
    with Waiting() as waiting:
        losses = distiller(**batch, mode='loss')
    assert waiting.found == set()
    assert losses


def build_method(kind: str, folder: str, method: dict) -> Any:
    if kind == 'images':
        return build_distiller(dict(method, student=classifier_config(), teacher=random_teacher(folder)))
    config = dense_distiller_config(kind, folder)
    config.update(method)
    return build_distiller(config)


def test_what_waits_is_found():
    """The test above can fail: each of these is noticed when it is this package's own."""
    waiting = Waiting()
    waiting._blame = lambda name: waiting.found.add(name)
    x = torch.arange(4.0)
    with waiting:
        x.sum().item()
        x[x > 1]
        x.nonzero()
        torch.tensor([1.0])
        bool((x > 1).any())
        x.clone()[x > 1] = 0
    assert waiting.found == {'_local_scalar_dense', 'index', 'nonzero', 'lift_fresh', 'index_put_'}
