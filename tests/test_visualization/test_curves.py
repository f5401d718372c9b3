"""Reading logs and drawing accuracy."""

import json

import numpy as np
import pytest

from dskd_mm.visualization import accuracy_curves, read_scalars


def write_log(folder, start: str, rows: list[dict], tail: str = '') -> None:
    log = folder / start / 'vis_data' / 'scalars.json'
    log.parent.mkdir(parents=True)
    log.write_text(''.join(json.dumps(row) + '\n' for row in rows) + tail)


def test_read_scalars(tmp_path):
    assert read_scalars(tmp_path) == []
    write_log(tmp_path, '20260101_000000', [{'loss': 9.0, 'step': 1}])
    rows = [{'loss': 1.0, 'step': 1}, {'accuracy/top1': 50.0, 'step': 1}]
    # The latest run counts, and a line that is being written does not.
    write_log(tmp_path, '20260102_000000', rows, tail='{"loss": 0.')
    assert read_scalars(tmp_path) == rows


def test_curve_and_band():
    runs = [[10.0, 50.0, 60.0, 70.0], [20.0, 60.0, 80.0, 90.0, 95.0]]
    figure = accuracy_curves({'plain': runs, 'DSKD': [[5.0, 80.0, 90.0, 95.0]]}, reference=('teacher', 97.0))
    axes = figure.axes[0]
    plain, single, teacher = axes.lines
    assert plain.get_ydata().tolist() == [15.0, 55.0, 70.0, 80.0], 'the mean, over the epochs that all runs have'
    assert plain.get_xdata().tolist() == [1, 2, 3, 4]
    band = axes.collections[0].get_paths()[0].vertices[:, 1]
    deviation = np.std([70, 90], ddof=1)
    assert band.max() == pytest.approx(80 + deviation) and single.get_label() == 'DSKD (mean of 1 run)'
    assert teacher.get_ydata()[0] == 97.0
    low, high = axes.get_ylim()
    assert 15 < low < 50 and 97 < high < 100, 'the start is out of the picture, everything later in it'
    assert axes.get_xlabel() and '%' in axes.get_ylabel()


def test_one_epoch(tmp_path):
    accuracy_curves({'plain': [[10.0]]}).savefig(tmp_path / 'figure.png')
    assert (tmp_path / 'figure.png').stat().st_size
