"""The models of the hosts' zoos are distilled, or say why not; the page says what was recorded."""

import re

import pytest

from benchmarks import model_zoo
from benchmarks.records import records
from benchmarks.runner import ROOT
from benchmarks.zoo_tables import first_sentence, verdict

ROWS = {(row['host'], row['config']): row for row in records(model_zoo.RESULTS)}
PAGE = (ROOT / 'docs/en/supported_models.md').read_text()


def test_every_row_is_exact_or_says_why():
    assert ROWS
    for key, row in ROWS.items():
        assert model_zoo.is_exact(row) or row['error'] or row.get('plain') or row['differences'], key
        if row['refused'] and row['site']:
            assert 'NeckSite' in row['refused'] or model_zoo.advised(row['refused']), key


def test_the_page_has_a_row_for_each_record():
    found = re.findall(r'^\| `([^`]+)` \| .* \| (.*) \|$', PAGE, re.MULTILINE)
    assert sorted(found) == sorted((row['config'].removesuffix('.py'), verdict(row)) for row in ROWS.values())


def test_a_difference_is_told():
    row = dict(site='DenseDetectionSite', refused='', error='', differences=dict(feature=0.0, logits=0.25))
    assert verdict(row) == 'trains; differs by 0.2' and not model_zoo.is_exact(row)
    error = "ValueError: The student's decode head (Head) has none. Distil at the neck instead."
    assert first_sentence(error) == "The student's decode head (Head) has none"
    exact = row | dict(differences=dict(feature=1e-6), site='NeckSite', refused=error)
    assert verdict(exact) == "exact at the neck; its head: The student's decode head (Head) has none"
    assert verdict(row | dict(site='', error='RuntimeError: broken')) == 'not supported: broken'


@pytest.mark.parametrize(
    ('host', 'config', 'size'),
    [('mmdet', 'detr/detr_r18_8xb2-500e_coco.py', (64, 64)), ('mmpretrain', 'lenet/lenet5_mnist.py', (32, 32))],
)
def test_a_model_does_what_the_record_says(host, config, size):
    """LeNet trains on images of 32 x 32 alone, not on those of 224 that are tried first."""
    pytest.importorskip(host)
    ((*_, model),) = model_zoo.chosen_models([f'{host}/{config}'])
    row = model_zoo.try_model(host, config, model)
    assert model_zoo.is_exact(row) and row['size'] == size
    assert row['site'] == ROWS[host, config]['site']
