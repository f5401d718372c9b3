"""Every method trains compiled as it trains plain: mmengine's `compile=dict(...)` compiles a model's whole forward pass."""

import copy
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config

from benchmarks.variants import METHODS
from dskd_mm.testing import random_batch
from dskd_mm.utils.methods import apply_method
from support import (
    DENSE_SIZE,
    build_distiller,
    dense_distiller_config,
    detection_batch,
    distiller_run_config,
    random_boxes,
    segmentation_batch,
)

ON_IMAGES = [method for method in METHODS if method not in ('teacher', 'plain', 'crosskd', 'cwd', 'pkd')]
"""Without those that have no settings for images."""
PAIRS = [
    *(('images', method) for method in ON_IMAGES),
    *(('fcn', method) for method in ('cwd', 'dskd')),
    *(('retinanet', method) for method in ('pkd', 'dskd', 'crosskd')),
]
HOSTS = dict(fcn='mmseg', retinanet='mmdet', images='mmpretrain')


class Graphs:
    """A backend that runs what it is given, and counts it."""

    count = 0

    def __call__(self, graph: Any, inputs: Any) -> Any:
        self.count += 1
        return graph.forward


def config_of(task: str, method: str, folder: Path) -> Config:
    """A small pair of a task, distilled by a method."""
    if task == 'images':
        config = distiller_run_config(str(folder))
        config.model.student.head.loss = dict(type='CrossEntropyLoss')  # to which methods give a weight
    else:
        model = dense_distiller_config(task, str(folder))
        config = Config(dict(model=model, default_scope=HOSTS[task]), format_python_code=False)
    # A method's file knows by the name which pairs have three stages.
    path = folder / f'{"resnet8_cifar100" if task == "images" else task}.py'
    config.dump(path)
    config = Config.fromfile(path, import_custom_modules=False)
    config = config if method == 'dskd' else apply_method(config, method)
    config.model.noise_seed = 0
    return config


def batch_of(task: str, distiller: Any) -> dict[str, Any]:
    """What a training step gets."""
    if task == 'images':
        return dict(zip(('inputs', 'data_samples'), random_batch(), strict=True))
    if task == 'fcn':
        labels = torch.zeros(2, *DENSE_SIZE, dtype=torch.long)
        labels[:, 20:45] = 1
        return segmentation_batch(distiller, labels)
    return detection_batch(distiller, [random_boxes(3), random_boxes(2, seed=1)])


def two_steps(config: Config, task: str, compiled: dict[str, Any] | None) -> list[dict[str, torch.Tensor]]:
    """Return what two steps log and, at last, the student's gradients."""
    distiller: Any = build_distiller(copy.deepcopy(config.model))
    if compiled is not None:
        torch._dynamo.reset()
        distiller.forward = torch.compile(distiller.forward, **compiled)  # as the runner does
    found = []
    for _ in range(2):
        torch.manual_seed(1)  # of dropout
        total, log = distiller.parse_losses(distiller(**batch_of(task, distiller), mode='loss'))
        total.backward()
        found.append({key: torch.as_tensor(value).detach().float() for key, value in log.items()})
    return [*found, {name: p.grad for name, p in distiller.student.named_parameters() if p.grad is not None}]


def assert_compiled_is_plain(config: Config, task: str, compiled: dict[str, Any]) -> None:
    """A compiled step logs what a plain one does, and has its gradients."""
    plain, ours = two_steps(config, task, None), two_steps(config, task, compiled)
    for expected, found in zip(plain, ours, strict=True):
        assert expected.keys() == found.keys()
        for key, value in expected.items():
            tolerance = 1e-3 * max(float(value.abs().max()), 1e-3)
            torch.testing.assert_close(found[key], value, rtol=1e-3, atol=tolerance, msg=lambda text, key=key: f'{key}: {text}')


@pytest.mark.slow
def test_only_networks_are_compiled_and_only_once(tmp_path) -> None:
    graphs = Graphs()
    assert_compiled_is_plain(config_of('images', 'dskd', tmp_path), 'images', dict(backend=graphs))
    # Of both steps: backbone, neck and head of both models, cut at the tapped layers; the denoiser learning and sampling.
    assert graphs.count == 8


def test_an_error_in_a_compiled_step_leaves_networks_as_they_were(tmp_path, monkeypatch) -> None:
    distiller: Any = build_distiller(config_of('images', 'dskd', tmp_path).model)
    step = torch.compile(distiller.loss, backend='eager')
    batch = batch_of('images', distiller)
    monkeypatch.setattr(distiller.student.head, 'loss', lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        step(**batch)
    assert all('forward' not in vars(module) for module in distiller.modules())


@pytest.mark.soak  # tracing takes half a minute
@pytest.mark.skipif(not find_spec('mmdet'), reason='mmdet is not installed')
def test_other_numbers_of_objects_make_no_other_graphs(tmp_path) -> None:
    distiller: Any = build_distiller(config_of('retinanet', 'dskd', tmp_path).model)
    graphs, counts = Graphs(), []
    torch._dynamo.reset()
    distiller.forward = torch.compile(distiller.forward, backend=graphs)
    for first, second in ((3, 2), (1, 6), (0, 4), (5, 1)):
        batch = detection_batch(distiller, [random_boxes(first), random_boxes(second, seed=1)])
        distiller.parse_losses(distiller(**batch, mode='loss'))[0].backward()
        counts.append(graphs.count)
    assert counts == [counts[0]] * 4 and counts[0] < 40


@pytest.mark.soak  # tracing takes half a minute
@pytest.mark.parametrize(('task', 'method'), PAIRS)
def test_a_method_trains_compiled(tmp_path, task: str, method: str) -> None:
    if not find_spec(HOSTS[task]):
        pytest.skip(f'{HOSTS[task]} is not installed')
    assert_compiled_is_plain(config_of(task, method, tmp_path), task, dict(backend='eager'))


def test_every_method_has_a_pair() -> None:
    assert {method for _, method in PAIRS} == set(METHODS) - {'teacher', 'plain'}


def test_what_wraps_a_network_is_there_in_every_step(tmp_path: Path) -> None:
    """mmengine's activation_checkpointing puts another forward on the module itself."""
    model = build_distiller(config_of('images', 'kd', tmp_path).model)
    network, calls = model.student.backbone, []
    own = network.forward

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        calls.append(len(args))
        return own(*args, **kwargs)

    network.forward = wrapped
    batch = batch_of('images', model)
    step = torch.compile(lambda: model(**batch, mode='loss'), backend=Graphs())
    for count in (1, 2, 3):
        step()
        assert len(calls) == count and network.forward is wrapped
    assert 'forward' not in vars(model.student.head)
