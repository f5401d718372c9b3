"""The line of docs/en/log.md that sends a run's figures to TensorBoard, Weights & Biases or MLflow."""

import re

import pytest
from doc_pages import ROOT
from mmengine.config import Config
from mmengine.runner import Runner

from dskd_mm.testing import random_teacher
from support import plain_run_config

PAGE = (ROOT / 'docs/en/log.md').read_text(encoding='utf-8')
ROWS = re.findall(r"`pip install (\w+)` \| `(dict\(type='\w+VisBackend'.*)` \|", PAGE)
LINE = re.search(r'^visualizer = .*$', PAGE, re.MULTILINE)[0]
FILES = dict(tensorboard='**/events.out.tfevents.*', wandb='**/*.wandb', mlflow='**/loss_dskd_lsh')
"""What each leaves in its folder."""


def test_the_page_has_all_three():
    assert [package for package, _ in ROWS] == list(FILES)
    assert ROWS[0][1] in LINE


@pytest.mark.parametrize(('package', 'backend'), ROWS, ids=[package for package, _ in ROWS])
def test_figures_arrive(package, backend, tmp_path, monkeypatch):
    pytest.importorskip('mmpretrain')
    pytest.importorskip(package, reason=f'without the package {package} it is not shown there')
    # Without a network and an account, as on a machine of a cluster.
    monkeypatch.setenv('WANDB_MODE', 'offline')
    monkeypatch.setenv('WANDB_SILENT', 'true')
    monkeypatch.setenv('MLFLOW_ALLOW_FILE_STORE', 'true')
    monkeypatch.setenv('MLFLOW_TRACKING_URI', (tmp_path / 'mlruns').as_uri())
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'page.py').write_text(LINE.replace(ROWS[0][1], backend))
    cfg = plain_run_config(str(tmp_path / 'work'))
    cfg.model = dict(type='dskd_mm.DSKDDistiller', student=cfg.model, teacher=random_teacher(str(tmp_path)))
    cfg.merge_from_dict(Config.fromfile(tmp_path / 'page.py').to_dict())
    cfg.merge_from_dict(dict(train_cfg=dict(max_epochs=1), default_hooks=dict(logger=dict(interval=1))))
    runner = Runner.from_cfg(cfg)
    runner.train()
    runner.visualizer.close()
    files = [file for file in tmp_path.glob(FILES[package]) if file.stat().st_size]
    assert any(file.name == 'loss_dskd_lsh' or b'loss_dskd_lsh' in file.read_bytes() for file in files)
