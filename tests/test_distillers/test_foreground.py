"""Batches with few objects, or none, count about as much as others."""

from pathlib import Path
from typing import Any

import pytest
import torch

from dskd_mm.distillers.foreground import ForegroundCount
from dskd_mm.structures import Target

COUNTS = [0.0, 80.0, 60.0, 0.0, 0.0, 3.0, 200.0, 0.0]


def target(count: float) -> Target:
    return Target(torch.zeros(1, 2, 3), torch.ones(1, 1, 3), torch.tensor(count))


def test_the_least_divisor_is_half_of_the_running_mean() -> None:
    counter, mean = ForegroundCount(), 0.0
    for count in COUNTS:
        mean = 0.9 * mean + 0.1 * count if mean > 0 else count
        found = counter(target(count))
        assert float(found.normalizer()) == pytest.approx(max(count, mean / 2, 1))
        # A validation is no step.
        assert float(counter.eval()(target(0.0)).normalizer()) == pytest.approx(max(mean / 2, 1))
        counter.train()
    whole = Target(torch.zeros(4, 2))
    assert counter(whole) is whole


def test_it_is_kept_and_older_checkpoints_load() -> None:
    counter, other = ForegroundCount(), ForegroundCount()
    counter(target(80.0))
    other.load_state_dict(counter.state_dict())
    assert float(other.mean) == 80
    other.load_state_dict({})
    assert float(other.mean) == 80


@pytest.mark.parametrize('kind', ['retinanet', 'fcos', 'gfl'])
@pytest.mark.parametrize('window', [None, 4])
def test_a_batch_without_objects_does_not_outweigh_others(kind: str, window: int | None, tmp_path: Path) -> None:
    """Of the same weights its losses are divided by .45 of the batch before: half of .9 of its objects."""
    pytest.importorskip('mmdet')
    from support import build_distiller, dense_distiller_config, detection_batch, random_boxes, watch

    def losses(*batches: list) -> tuple[dict[str, float], float]:
        added = dict(kd=dict(type='dskd_mm.KDLoss', temperature=1))
        config = dense_distiller_config(kind, str(tmp_path), window=window, noise_seed=1, distill_losses=added)
        distiller: Any = build_distiller(config)
        calls = watch(distiller, 'distill')
        for objects in batches:
            found = distiller(**detection_batch(distiller, objects), mode='loss')
        names = ('loss_kd', 'loss_dskd_logit', 'loss_dskd_anchor')
        _, _, before, _ = calls[0].args  # the target of the first batch
        return {name: found[name].item() for name in names}, float(before.avg_factor)

    empty = [[], []]
    alone, count = losses(empty)
    assert count == 0
    after, count = losses([random_boxes(3), random_boxes(2, seed=1)], empty)
    assert count > 4
    assert after['loss_kd'] == pytest.approx(alone['loss_kd'] / (0.45 * count), rel=1e-3)
    if window is None:
        for name in ('loss_dskd_logit', 'loss_dskd_anchor'):
            assert after[name] == pytest.approx(alone[name] / (0.45 * count), rel=1e-3)
    else:
        assert all(0 < after[name] < alone[name] for name in after)
