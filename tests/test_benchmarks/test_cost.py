"""The cost benchmark on a small pair, and its parts against what is known."""

import argparse
import json
import subprocess
import sys
from importlib.util import find_spec

import pytest
import torch
from torch import nn

from benchmarks import cost, cost_growth, cost_tables, profiling
from benchmarks.runner import ROOT

KEYS = {
    *('config', 'method', 'variant', 'device', 'step_seconds', 'step_ratio', 'floor_ratio', 'uses_teacher_forward'),
    *('memory_ratio', 'added_parameters', 'added_flops', 'parts', 'command', 'commit'),
}
PAIR = ROOT / 'configs/dskd/resnet8-w8_r14-w16_fashion-mnist.py'
needs_mmpretrain = pytest.mark.skipif(find_spec('mmpretrain') is None, reason='mmpretrain is not installed')


@pytest.fixture(scope='module')
def rows(tmp_path_factory) -> dict[str, dict]:
    path = tmp_path_factory.mktemp('cost') / 'cost.jsonl'
    command = [sys.executable, 'benchmarks/cost.py', str(PAIR), '--batch', '4', '--size', '28', '28', '--rounds', '3']
    command += ['--against', 'diffkd,nothing-of-that-name', '--device', 'cpu', '--results', str(path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return {row['variant']: row for row in map(json.loads, path.read_text().splitlines())}


@needs_mmpretrain
def test_a_record_for_each_method(rows):
    assert set(rows) == {'plain', 'dskd', 'teacher_free', 'diffkd'}
    assert all(set(row) >= KEYS for row in rows.values())
    assert [name for name, row in rows.items() if row['uses_teacher_forward']] == ['dskd', 'diffkd']
    plain, free = rows['plain'], rows['teacher_free']
    assert plain['step_ratio'] == plain['memory_ratio'] == 1 and plain['added_parameters'] == plain['added_flops'] == 0
    assert free['method'] == 'dskd' and 0 < free['added_flops'] < rows['dskd']['added_flops']
    assert free['added_parameters'] == rows['dskd']['added_parameters'] > 0
    assert [name for name, row in rows.items() if 'sampler_ratio' in row] == ['dskd', 'teacher_free']
    # A teacher that runs is in memory, too.
    assert plain['peak_bytes'] < free['peak_bytes'] < rows['dskd']['peak_bytes']


@needs_mmpretrain
def test_parts_are_shares_of_the_step_and_of_the_method_that_has_them(rows):
    for row in rows.values():
        assert sum(row['parts'].values()) == pytest.approx(1, abs=0.01)
    assert set(rows['plain']['parts']) == {'student', 'optimizer'}
    assert set(rows['teacher_free']['parts']) == set(profiling.PARTS) - {'teacher'}
    assert set(rows['dskd']['parts']) == set(profiling.PARTS)


@needs_mmpretrain
def test_flops_and_memory_are_those_of_a_known_layer():
    args = argparse.Namespace(device='cpu', amp=False, batch=2, size=(28, 28), cfg_options={})
    contestant = cost.Contestant(PAIR, 'plain', '', args)
    layer = nn.Linear(1000, 300)

    class Known(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: torch.Tensor, mode: str) -> dict:
            return dict(loss=self.layer(x).sum())

        def parse_losses(self, losses: dict) -> tuple:
            return losses['loss'], losses

    contestant.model = Known()
    contestant.data = dict(x=torch.randn(50, 1000))
    contestant.optim = cost.OptimWrapper(torch.optim.SGD(layer.parameters(), lr=0.0))
    contestant.step()
    # Forward, and backward by the weight alone, for the input needs no gradient: 2 * 50 * 1000 * 300 each.
    assert contestant.operations() == 2 * 2 * 50 * 1000 * 300
    weights = 4 * (1000 * 300 + 300)
    assert contestant.kept_bytes() == weights
    # The gradients of one step are there until the next; its outputs and their gradient come and go.
    assert weights <= contestant.peak_bytes() - weights <= 2 * weights + 4 * 4 * 50 * 300


def test_features_alone_grow_with_steps_and_locations():
    small, large = (dict(cost_growth.BASE, channels=16, images=1, size=size, bits=32) for size in (4, 8))
    assert cost_growth.Growing('cpu', **small).step() > 0
    growing = cost_growth.Growing('cpu', **dict(large, levels=3, steps=2))
    assert [tuple(level.shape) for level in growing.model.student.maps] == [(1, 16, s, s) for s in (8, 4, 2)]
    assert growing.model.diffusion.sampler.steps == 2
    assert growing.step() > 0


def test_the_exponent_is_the_slope_on_logarithmic_axes():
    assert cost_tables.exponent([(1, {}), (2, dict(step_seconds=3.0)), (8, dict(step_seconds=48.0))]) == pytest.approx(2)


@pytest.mark.parametrize('arguments', [[], ['configs/dskd/x.py', '--growth']])
def test_either_configs_or_growth(arguments):
    result = subprocess.run([sys.executable, 'benchmarks/cost.py', *arguments], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2 and 'one of them' in result.stderr
