"""What the tests of the rivals share: toy models of every task and what is asked of any method."""

import copy
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from mmengine.config import ConfigDict

from dskd_mm.testing import TOY_KINDS, assert_nothing_is_unused, classifier_config, random_batch, random_teacher, reaches, train
from support import (
    DENSE_CLASSES,
    DENSE_SIZE,
    DETECTORS,
    build_distiller,
    dense_distiller_config,
    detection_batch,
    random_boxes,
    segmentation_batch,
)

needs_mmdet = pytest.mark.skipif(not find_spec('mmdet'), reason='mmdet is not installed')
needs_mmseg = pytest.mark.skipif(not find_spec('mmseg'), reason='mmseg is not installed')
IGNORED = 255


def rival_config(method: str, kind: str, directory: Any, **switches: Any) -> ConfigDict:
    """Config of a distiller of toy models with a teacher of random weights."""
    if kind in TOY_KINDS:
        teacher = random_teacher(str(directory), kind=kind)
        config = ConfigDict(student=classifier_config(kind), teacher=teacher)
    else:
        config = dense_distiller_config(kind, str(directory))
    # Without a warm-up, as the first step is what is looked at.
    config.update(type=f'dskd_mm.{method}', noise_seed=7, **(dict(warmup=0) | switches))
    return config


def rival_batch(distiller: Any, kind: str, annotated: bool = True) -> dict[str, Any]:
    """A preprocessed batch; without annotations there is no object and no label."""
    if kind in TOY_KINDS:
        images, samples = random_batch(multi_label=kind == 'multi_label')
        return dict(inputs=images, data_samples=samples)
    if kind in DETECTORS:
        return detection_batch(distiller, [random_boxes(3), random_boxes(2, seed=1)] if annotated else [[], []])
    labels = torch.zeros(2, *DENSE_SIZE, dtype=torch.long)
    labels[0, 20:45], labels[1, :, 50:] = 1, 1 if kind == 'binary' else DENSE_CLASSES - 1
    labels[:, 30:38, 10:50] = IGNORED
    return segmentation_batch(distiller, labels if annotated else torch.full_like(labels, IGNORED))


def own(losses: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """What a distiller adds to the student's losses."""
    return {key: value for key, value in losses.items() if key.startswith((prefix, f'loss_{prefix}'))}


def assert_behaves(config: ConfigDict, kind: str, prefix: str, names: set[str], apart: tuple[str, ...] = ()) -> Any:
    """A method at a site: it trains, reaches the student, resumes, is copied, knows half precision and owns no teacher.

    Args:
        config (ConfigDict): The distiller.
        kind (str): The toy student.
        prefix (str): What the names of its losses and figures begin with.
        names (set[str]): All of them, without 'loss_<prefix>' or '<prefix>'.
        apart (tuple[str, ...]): Ends of the names of losses that are not for the student.

    Returns:
        Distiller: The trained distiller.
    """
    distiller = build_distiller(config)
    batch = rival_batch(distiller, kind)
    before = copy.deepcopy(distiller.student.backbone.state_dict())
    for log in train(distiller, batch):
        found = own(log, prefix)
        assert {key.removeprefix('loss_').removeprefix(prefix) for key in found} == names
        assert all(bool(torch.isfinite(value)) for value in log.values()), log
    after = distiller.student.backbone.state_dict()
    assert any(not torch.equal(after[key], value) for key, value in before.items())

    losses = own(distiller(**batch, mode='loss'), f'loss_{prefix}')
    for name, loss in losses.items():
        wanted = not name.endswith(apart) if apart else True
        assert reaches(loss, distiller.student.backbone) == wanted, name
    assert_nothing_is_unused(distiller, batch)

    state = distiller.state_dict()
    assert not [key for key in state if key.startswith('teacher')]
    resumed = build_distiller(config)
    resumed.load_state_dict(state, strict=True)
    copied = copy.deepcopy(distiller)
    expected = seeded_losses(distiller, batch, prefix)
    for other in (resumed, copied):
        for name, value in seeded_losses(other, batch, prefix).items():
            torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-5, msg=name)

    if kind == 'faster_rcnn':  # mmcv pools no regions in half precision on CPUs
        return distiller
    with torch.autocast('cpu', torch.bfloat16):
        half = distiller(**batch, mode='loss')
    total, _ = distiller.parse_losses(half)
    total.backward()
    assert all(bool(torch.isfinite(value)) for value in own(half, prefix).values())
    assert all(value.dtype == torch.float32 for value in own(half, f'loss_{prefix}').values())
    return distiller


def seeded_losses(distiller: Any, batch: dict[str, Any], prefix: str) -> dict[str, Any]:
    """The losses of one step; the student's own sampling of proposals and dropout come from the global generator."""
    if not distiller.teacher.is_loaded:
        distiller.load_teacher()  # building it draws from there, too
    torch.manual_seed(3)
    return own(distiller(**batch, mode='loss'), prefix)


def assert_survives_nothing(config: ConfigDict, kind: str, prefix: str) -> dict[str, Any]:
    """Without any annotation the losses are finite and no parameter is left out; returns them."""
    distiller = build_distiller(config)
    batch = rival_batch(distiller, kind, annotated=False)
    losses = own(distiller(**batch, mode='loss'), prefix)
    assert all(bool(torch.isfinite(value)) for value in losses.values()), losses
    assert_nothing_is_unused(distiller, batch)
    return losses
