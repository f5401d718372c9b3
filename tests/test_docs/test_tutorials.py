"""The tutorials, from the first block to the last as a reader runs them, with fewer images and epochs."""

import os
from pathlib import Path

import pytest
from doc_pages import ROOT
from page_runs import run_page

DATA_ROOT = Path(os.environ.get('DSKD_DATA_ROOT', ROOT / '../shared/data')).resolve()
SHORTER = dict(
    classification=[
        ('max_epochs=6, val_interval=6', 'max_epochs=1'),
        ('indices=10000', 'indices=128'),
        ("split='test'", "split='test', indices=100"),
        ('epoch_6', 'epoch_1'),
        ('T_max=6', 'T_max=1'),
    ],
    detection=[
        ('max_epochs=16, val_interval=16', 'max_epochs=1, val_interval=1'),
        ("'coco/train.json', ", "'coco/train.json', indices=16, "),
        ("'coco/test.json', ", "'coco/test.json', indices=4, "),
        ('epoch_16', 'epoch_1'),
        ('end=50', 'end=1'),
        ('T_max=16', 'T_max=1'),
    ],
    segmentation=[
        ('max_iters=400, val_interval=400', 'max_iters=2, val_interval=2'),
        ('interval=400', 'interval=2'),
        ('iter_400', 'iter_2'),
        ('end=400', 'end=2'),
        ("'val.txt', ", "'val.txt', indices=2, "),
    ],
)
"""What the test writes in place of the page's own budget."""


@pytest.mark.parametrize(
    ('task', 'host', 'data'),
    [
        ('classification', 'mmpretrain', 'fashion_mnist'),
        ('detection', 'mmdet', 'bccd'),
        ('segmentation', 'mmseg', 'dsb2018_nuclei'),
    ],
)
@pytest.mark.slow
@pytest.mark.data
def test_tutorial(task, host, data, tmp_path, monkeypatch):
    pytest.importorskip(host)
    if not (DATA_ROOT / data).is_dir():
        pytest.skip(f'no {data} at {DATA_ROOT}; set DSKD_DATA_ROOT to run the tutorial')
    monkeypatch.setenv('DSKD_DATA_ROOT', str(DATA_ROOT))
    monkeypatch.chdir(tmp_path)
    names = run_page(ROOT / f'docs/en/tutorials/{task}.md', SHORTER[task])
    assert {'teacher', 'student', 'distilled'} <= {path.name for path in Path('work_dirs').iterdir()}
    assert Path('student.pth').is_file() and Path('work_dirs/distilled/student_last.pth').is_file()
    if task != 'classification':
        assert len(names['found']['predictions']) == 2 and len(list(Path('pictures/vis').iterdir())) == 2
    else:
        assert names['guess']['pred_scores'].shape == (10,)
