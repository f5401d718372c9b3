"""The presets of DSKD: the terms that each names, in every task, and what goes before them."""

from pathlib import Path

import pytest
import torch
from rival_checks import needs_mmdet, needs_mmseg, rival_batch, rival_config

from dskd_mm.distillers.dskd_options import PRESETS, TASK_DEFAULTS
from dskd_mm.testing import assert_nothing_is_unused, assert_trains
from support import build_distiller

TERMS = {
    'default': {'diff', 'anchor', 'lsh', 'logit'},
    'published': {'diff', 'lsh'},
    'teacher_free': {'diff', 'anchor', 'lsh'},
}
# Terms of a task's own, and the weight of the hash that stands alone.
FREE = {'teacher_free': {'virtual'}}
KINDS = [
    pytest.param('gap', FREE, 100.0, id='gap'),
    pytest.param('fcn', {'default': {'channel'}}, 100.0, id='fcn', marks=needs_mmseg),
    pytest.param('retinanet', FREE | {'default': {'box'}}, 10.0, id='retinanet', marks=needs_mmdet),
    pytest.param('faster_rcnn', FREE | {'default': {'box'}}, 100.0, id='faster_rcnn', marks=needs_mmdet),
    # At a neck no logits are compared.
    pytest.param('detr', {}, 10.0, id='neck', marks=needs_mmdet),
]


@pytest.mark.parametrize('preset', PRESETS)
@pytest.mark.parametrize(('kind', 'more', 'hash_weight'), KINDS)
def test_presets_contain_the_terms_that_they_name(
    kind: str, more: dict[str, set[str]], hash_weight: float, preset: str, tmp_path: Path
) -> None:
    config = rival_config('DSKDDistiller', kind, tmp_path, preset=preset, gate=False)
    distiller = build_distiller(config)
    batch = rival_batch(distiller, kind)
    losses = distiller(**batch, mode='loss')
    found = {name.removeprefix('loss_dskd_') for name in losses if name.startswith('loss_dskd_')}
    is_neck = distiller.site.task == 'neck'
    terms = (TERMS[preset] | more.get(preset, set())) - ({'logit'} if is_neck else set())
    # φ stays in the graph of every preset: a zero under the anchor's name.
    assert found == terms | {'anchor'}
    assert {name for name in found if losses[f'loss_dskd_{name}'] != 0} == terms
    assert distiller.uses_teacher_forward == (preset == 'default' and not is_neck)
    assert distiller.options.loss_weights['lsh'] == (hash_weight if preset == 'published' else 1.0)
    assert_nothing_is_unused(distiller, batch)
    assert_trains(build_distiller(config), batch, found)


def test_the_default_preset_is_what_is_without_one(tmp_path: Path) -> None:
    found = []
    for given in ({}, dict(preset='default')):
        torch.manual_seed(0)
        distiller = build_distiller(rival_config('DSKDDistiller', 'gap', tmp_path, **given))
        found.append(distiller(**rival_batch(distiller, 'gap'), mode='loss'))
    torch.testing.assert_close(*found)


def test_presets_go_before_the_tasks_row_and_options_before_presets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row = dict(target='soft', loss_weights=dict(channel=3.0, lsh=2.0), sampler=dict(steps=3))
    monkeypatch.setitem(TASK_DEFAULTS, 'classification', row)
    distiller = build_distiller(rival_config('DSKDDistiller', 'gap', tmp_path, preset='published'))
    nothing = dict.fromkeys(('anchor', 'virtual', 'logit', 'channel', 'box'), 0.0)
    assert distiller.options.loss_weights == dict(diff=1.0, lsh=100.0, **nothing)
    assert (distiller.options.target, distiller.diffusion.sampler.steps) == ('label', 3)
    given = dict(preset='published', target='soft', loss_weights=dict(lsh=7.0))
    other = build_distiller(rival_config('DSKDDistiller', 'gap', tmp_path, **given))
    assert (other.options.target, other.options.loss_weights) == ('soft', dict(diff=1.0, lsh=7.0, **nothing))
