"""The table of models that were taken from `dskd distill` to an ONNX graph follows from its record, and the script makes it."""

from pathlib import Path

import pytest

from benchmarks.records import records
from benchmarks.shipped_tables import RESULTS, STEPS, graph, verdict


def test_three_models_of_each_host_take_every_step() -> None:
    rows = records(RESULTS)
    assert [sum(row['host'] == host for row in rows) for host in ('mmpretrain', 'mmdet', 'mmseg')] == [3, 3, 3]
    wrong = []
    for row in rows:
        assert [verdict(row, step) for step in STEPS] == ['works'] * len(STEPS), row['name']
        assert {'commit', 'versions', 'command'} <= set(row)
        if row['name'] == 'faster_rcnn':
            assert graph(row) == 'refused'
            continue
        difference, largest = map(float, row['onnx'].split(' of '))
        wrong += [row['name']] if difference > 1e-4 * max(largest, 1) else []
    assert wrong == []


def test_a_step_that_fails_is_shown() -> None:
    assert verdict(dict(train='ValueError: no data'), 'train') == 'ValueError: no data'
    assert verdict(dict(train='ValueError: no data'), 'test') == ''
    assert verdict(dict(test='mIoU 3.20'), 'test') == 'works'
    assert graph(dict(onnx='2.4e-07 of 1.5e+00')) == '2e-07 (1.5)'
    assert graph(dict(onnx='SystemExit: dskd onnx: there is 1 of 2')) == 'SystemExit: dskd onnx: there is 1 of 2'
    assert graph(dict(onnx='RuntimeError: tensor a | b\nof size 3')) == 'RuntimeError: tensor a \\| b of size 3'
    assert graph({}) == ''


@pytest.mark.slow
def test_the_script_takes_a_model_all_the_way(tmp_path: Path) -> None:
    for name in ('sklearn', 'mmseg', 'mmpretrain', 'onnx', 'onnxruntime'):
        pytest.importorskip(name)
    from benchmarks.shipped import STEPS as ALL
    from benchmarks.shipped import ship

    found = ship('fcn', tmp_path)
    assert list(found) == list(ALL)
    assert found['distill'] == found['train'] == 'works' and ' ' in found['test']
    assert found['inferencer'] == 'map of 128x128'
    assert float(found['onnx'].split(' of ')[0]) < 1e-4
