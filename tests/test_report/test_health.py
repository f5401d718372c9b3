"""Bands: their words, and what is in them."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from dskd_mm.report.health import Finding, judge, loss_shares
from dskd_mm.report.log_keys import LOG_KEYS, LogKey, find_log_key

ROWS = [row for group in LOG_KEYS.values() for row in group]


def finding(name: str, values: Sequence[float], **others: Sequence[float]) -> Finding:
    rows = [dict({key: column[i] for key, column in others.items()}, **{name: value}) for i, value in enumerate(values)]
    return {found.name: found for found in judge(rows)}[name]


def test_every_row_has_its_words() -> None:
    names = [row.key for row in ROWS]
    assert len(names) == len(set(names))
    for row in ROWS:
        assert row.about and row.healthy, row.key
        assert row.trend in ('', 'falls', 'rises')
        assert {row.below, row.above} - {''} <= set(names), row.key
        assert row.mend or row.key in ('dskd_trivial_error', 'sokd_probability', 'rtk_top'), row.key


def test_bands_in_words() -> None:
    assert LogKey('x', 'y', low=0.5, high=1).healthy == '0.5 to 1'
    assert LogKey('x', 'y', low=1, high=1, note='soon').healthy == '1; soon'
    assert LogKey('x', 'y', trend='falls', below='z', margin=1.5).healthy == 'falls, below 1.5 times `z`'
    assert LogKey('x', 'y', high=2).healthy == '2 or less' and LogKey('x', 'y', low=2).healthy == '2 or more'


def test_names_find_their_row() -> None:
    assert find_log_key('loss_diffkd_feature_kd').key == 'loss_diffkd_<pair>_kd'
    assert find_log_key('loss_cls') is None, "the student's own"
    assert find_log_key('loss_cls', ['cls']).key == 'loss_<name>'
    assert find_log_key('lr') is None and find_log_key('loss').key == 'loss'


@pytest.mark.parametrize(
    ('name', 'values', 'others', 'healthy'),
    [
        ('dskd_gate', [0.9] * 20, {}, True),
        ('dskd_gate', [0.9] * 10 + [0.1] * 10, {}, False),
        ('dskd_gate', [0.1] * 10 + [0.9] * 10, {}, True),
        ('dskd_std', [1.0, 5.0, 200.0, 200.0, 300.0], {}, False),
        ('dskd_std', [float('nan')] * 5, {}, False),
        ('loss_dskd_logit', [5.0, 4.0, 3.0, 2.0, 1.0, 1.0], {}, True),
        ('loss_dskd_logit', [1.0, 1.0, 2.0, 3.0, 4.0, 5.0], {}, False),
        ('loss_dskd_logit', [0.0, 1.0, 9.0, 8.0, 7.0, 6.0], dict(distill_warmup=[0, 0.1, 1, 1, 1, 1]), True),
        ('loss_dskd_logit', [0.0, 1.0, 9.0, 8.0], dict(distill_warmup=[0, 0.1, 0.2, 0.3]), None),
        ('dskd_acc_start', [0.1] * 5 + [0.8] * 5, {}, True),
        ('dskd_acc_start', [0.8] * 5 + [0.1] * 5, {}, False),
        ('dskd_noise_error', [0.2] * 5, dict(dskd_trivial_error=[0.3] * 5), True),
        ('dskd_noise_error', [0.9] * 5, dict(dskd_trivial_error=[0.3] * 5), False),
        ('dskd_noise_error', [0.9] * 5, {}, None),
        ('dskd_acc_denoised', [0.5] * 5, dict(dskd_acc_start=[0.9] * 5), False),
        ('dskd_trivial_error', [0.3] * 5, {}, None),
        ('loss_dskd_lsh', [0.3, 9.0, 99.0], {}, None),
    ],
)
def test_what_is_healthy(name: str, values: list[float], others: dict, healthy: bool | None) -> None:
    found = finding(name, values, **others)
    assert found.healthy is healthy
    assert found.verdict == {True: 'healthy', False: 'not healthy', None: 'not judged'}[healthy]
    assert bool(found.reason) is (healthy is not True)


def test_shares_of_the_total() -> None:
    rows = [dict(loss=4.0, loss_student=1.0, loss_cls=1.0, loss_dskd_anchor=2.0, loss_mine=1.0, step=step) for step in (1, 2)]
    steps, shares = loss_shares(rows, ['mine'])
    assert steps == [1, 2] and shares == dict(loss_student=[0.25] * 2, loss_dskd_anchor=[0.5] * 2, loss_mine=[0.25] * 2)


RECORDS = Path(__file__).parents[2] / 'benchmarks/results/diffusion_health.jsonl'
FIRST = 'beta-8-first'


@pytest.mark.parametrize(('variant', 'wrong'), [('dskd', set()), (FIRST, {'noise_error', 'gate', 'bits', 'cosine_denoised'})])
def test_the_bands_tell_recorded_runs_apart(variant: str, wrong: set[str]) -> None:
    """What was mended is healthy; the construction of the diffusion that was at fault is not."""
    records = [json.loads(line) for line in RECORDS.read_text(encoding='utf-8').splitlines()]
    records = [record for record in records if record['variant'] == variant]
    assert len(records) >= 4
    for record in records:
        stages = [record['health'][stage] for stage in ('early', 'middle', 'late')]
        found = judge([row for row in stages for _ in range(3)])
        unhealthy = {finding.name.removeprefix('dskd_') for finding in found if finding.healthy is False}
        assert unhealthy >= wrong and (wrong or not unhealthy), record['seed']


def test_the_page_quotes_the_records() -> None:
    late: dict[tuple[str, str], list[float]] = {}
    for line in RECORDS.read_text(encoding='utf-8').splitlines():
        record = json.loads(line)
        for name, value in record['health'].get('late', {}).items() if record['task'] == 'cls' else ():
            late.setdefault((record['variant'], name), []).append(value)
    page = (RECORDS.parents[2] / 'docs/en/log.md').read_text(encoding='utf-8')
    rows = [row.split(' | ') for row in page.partition('## Where the bands')[2].splitlines() if row.startswith('| `')]
    assert len(rows) == 11
    for name, *ranges in rows:
        for variant, text in zip(('dskd', FIRST), ranges, strict=False):
            values = late[variant, name.strip('| `')]
            assert text == f'{min(values):.2f} to {max(values):.2f}', name
