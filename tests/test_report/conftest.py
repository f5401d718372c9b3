"""Runs that reports are written of: small, but trained by mmengine's runner."""

from pathlib import Path

import pytest

from support import distiller_run_config, plain_run_config, toy_runner

LENGTH = 6
KD = dict(maps=dict(type='dskd_mm.PKDLoss'))


@pytest.fixture(scope='session')
def work_dirs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A teacher, a plain student, and two seeds of the same distilled one."""
    root = tmp_path_factory.mktemp('runs')
    wide = plain_run_config(str(root / 'teacher'), width=6)
    teacher = dict(config=dict(model=wide.model), checkpoint=str(root / f'teacher/epoch_{LENGTH}.pth'))
    plan = dict(teacher=wide, plain=plain_run_config(str(root / 'plain')))
    for name in ('dskd_seed0', 'dskd_seed1'):
        plan[name] = distiller_run_config(str(root / name), teacher, distill_losses=KD)
    for name, cfg in plan.items():
        (root / name).mkdir()
        cfg.dump(str(root / name / f'toy_{name.split("_")[0]}.py'))
        toy_runner(cfg, log_level='INFO', randomness__seed=int(name.endswith('1')), train_cfg__max_epochs=LENGTH).train()
    return {name: root / name for name in plan}
