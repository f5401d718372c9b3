"""The table of the log's keys: nothing else is logged, and all of it is."""

import runpy
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from mmengine.config import Config

from dskd_mm.report import LOG_KEYS, find_log_key, read_scalars
from support import (
    detector_run_config,
    distiller_run_config,
    segmentor_run_config,
    toy_runner,
    write_distiller_files,
    write_scenes,
)

ROOT = Path(__file__).parents[2]
# All that can be logged at all: an autoencoder, a noise adapter, which is trained through the sampler.
ADAPTER = dict(autoencoder=dict(latent_channels=4), detach=False, sampler=dict(noise='adapter'))


def configs(folder: Path) -> Iterator[Config]:
    """A distiller of each task."""
    for name, options in (('plain', {}), ('adapter', ADAPTER)):
        (folder / name).mkdir()
        yield distiller_run_config(str(folder / name), distill_losses=dict(kd=dict(type='dskd_mm.KDLoss')), warmup=2, **options)
    data = write_scenes(folder / 'data')
    for kind, run_config in (
        ('retinanet', detector_run_config),
        ('faster_rcnn', detector_run_config),
        ('fcn', segmentor_run_config),
    ):
        (folder / kind).mkdir()
        wide = run_config(kind, data, width=6)
        cfg = Config.fromfile(write_distiller_files(folder / kind, run_config(kind, data), wide, wide='cls'))
        cfg.work_dir = str(folder / kind)
        yield cfg


@pytest.mark.skipif(not (find_spec('mmdet') and find_spec('mmseg')), reason='mmdet or mmseg is not installed')
def test_what_runs_of_all_tasks_log_is_what_the_table_has(tmp_path: Path) -> None:
    logged: set[str] = set()
    for cfg in configs(tmp_path):
        toy_runner(cfg, visualizer__name=cfg.work_dir).train()  # mmengine keeps visualizers by their names
        rows = read_scalars(cfg.work_dir)
        assert rows
        logged |= {key for row in rows for key in row}
    ours = {key for key in logged if key.startswith(('dskd_', 'loss_dskd_', 'distill_')) or key in ('loss', 'loss_student')}
    table = {row.key for group in ('every', 'losses', 'figures') for row in LOG_KEYS[group]}
    assert 'loss_kd' in logged and find_log_key('loss_kd', ['kd']).key == 'loss_<name>'
    assert ours == table - {'loss_<name>'}


def test_the_page_has_the_table() -> None:
    tables = runpy.run_path(str(ROOT / 'tools/misc/config_tables.py'))
    text = (ROOT / 'docs/en/log.md').read_text(encoding='utf-8')
    assert tables['written'](text) == text, 'run tools/misc/config_tables.py'
    for group, rows in LOG_KEYS.items():
        assert f'<!-- log: {group} -->' in text
        assert all(f'| `{row.key}` | {row.about} | {row.healthy} |' in text for row in rows)
