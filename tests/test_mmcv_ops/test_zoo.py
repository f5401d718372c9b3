"""Models of the zoos run without compiled operators, as the docs' table says."""

import pytest

pytest.importorskip('mmcv.ops', reason='mmcv has no operators here: python -m dskd_mm.mmcv_ops install')
from benchmarks import mmcv_zoo
from benchmarks.records import records

ROWS = {(row['host'], row['model']): row for row in records(mmcv_zoo.RESULTS)}


def test_the_record_is_of_at_least_thirty_models_that_exist():
    known = {(host, name): path for host, models in mmcv_zoo.MODELS.items() for name, path in models.items()}
    assert all(known[key] == row['config'] for key, row in ROWS.items())
    assert sum(row['train'] == row['test'] == 'works' for row in ROWS.values()) >= 30


@pytest.mark.parametrize(
    ('host', 'model'), [('mmdet', 'faster_rcnn_dcnv2'), ('mmdet', 'mask_rcnn_carafe'), ('mmseg', 'psanet')]
)
def test_a_model_does_what_the_record_says(host, model):
    """Together they call most of the operators that are provided."""
    pytest.importorskip(host)
    row = mmcv_zoo.try_model(host, model, mmcv_zoo.MODELS[host][model])
    assert {key: row[key] for key in ('train', 'test', 'operators')} == {
        key: ROWS[host, model][key] for key in ('train', 'test', 'operators')
    }
    assert row['train'] == row['test'] == 'works'
