"""Each of mmpretrain, mmdet and mmseg may be missing: the other tasks' tests pass without it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from support import run_process

TESTS = Path(__file__).parent
SITES = {
    'mmpretrain': 'test_classification_site.py',
    'mmdet': 'test_dense_detection_site.py',
    'mmseg': 'test_segmentation_site.py',
}
EVERY_SITE = TESTS / 'test_sites' / 'test_every_site.py'


def block(folder: Path, *hosts: str) -> str:
    """A folder for PYTHONPATH in whose processes some hosts cannot be imported."""
    (folder / 'sitecustomize.py').write_text(f'import sys\nsys.modules.update(dict.fromkeys({hosts!r}))\n')
    return str(folder)


def test_the_package_itself_needs_no_host(tmp_path: Path) -> None:
    """Its parts are registered all the same, those for the missing hosts included."""
    code = f"""
import importlib
for host in {list(SITES)}:
    try:
        importlib.import_module(host)
    except ModuleNotFoundError:
        continue
    raise SystemExit(f'{{host}} can still be imported')
import dskd_mm, dskd_mm.testing
from mmengine.registry import MODELS
for name in ('DSKDDistiller', 'ClassificationSite', 'DenseDetectionSite', 'SegmentationSite', 'NeckSite'):
    assert MODELS.get(f'dskd_mm.{{name}}') is not None, name
"""
    run_process(sys.executable, '-c', code, PYTHONPATH=block(tmp_path, *SITES))


# Some models of the tasks that are left, by the host that is missing.
LEFT = {'mmpretrain': 'fcos or faster_rcnn or fcn', 'mmdet': 'fcn or segformer', 'mmseg': 'gfl or detr'}


@pytest.mark.slow
@pytest.mark.parametrize('host', SITES)
def test_other_tasks_need_no_missing_host(tmp_path: Path, host: str) -> None:
    for other in SITES:
        pytest.importorskip(other)
    files = [TESTS / 'test_sites' / name for other, name in SITES.items() if other != host]
    command = [sys.executable, '-m', 'pytest', '-q', '-p', 'no:cacheprovider', '--basetemp', tmp_path / 'pytest']
    # All that a site finds and refuses, and two steps of an optimizer.
    select = ['-k', f'refused or found or (two_iterations and ({LEFT[host]}))']
    printed = run_process(*command, *files, EVERY_SITE, *select, PYTHONPATH=block(tmp_path, host))
    assert re.search(r'\b[1-9]\d* passed', printed) and 'skipped' not in printed, printed


def test_a_config_of_a_missing_host_says_so(tmp_path: Path) -> None:
    code = "from dskd_mm.utils.config import load_config; load_config('mmdet::retinanet/retinanet_r18_fpn_1x_coco.py')"
    environment = dict(PYTHONPATH=block(tmp_path, 'mmdet'), PATH='')
    done = subprocess.run([sys.executable, '-c', code], env=environment, capture_output=True, text=True)
    assert done.returncode != 0
    assert "needs the package 'mmdet', which is not installed" in done.stderr
