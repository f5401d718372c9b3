"""Find what of a config cannot train before any epoch is spent: on the CPU, in seconds, all at once.

``dskd check`` runs all of it, ``tools/train.py`` the cheap parts.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping

import torch
from mmengine.config import Config
from mmengine.registry import DefaultScope

from dskd_mm.preflight.data import check_data
from dskd_mm.preflight.environment import check_environment
from dskd_mm.preflight.models import check_checkpoints, check_models
from dskd_mm.preflight.report import Finding, Report, explain, report_table
from dskd_mm.preflight.schedule import check_schedule
from dskd_mm.preflight.step import check_step

PARTS: Mapping[str, Callable[[Report], None]] = dict(
    environment=check_environment,
    models=check_models,
    schedule=check_schedule,
    data=check_data,
    checkpoints=check_checkpoints,
    step=check_step,
)
"""What there is to look at, in this order."""
CHEAP = ('environment', 'models', 'schedule', 'data', 'checkpoints')
"""What ``tools/train.py`` looks at, without reading data sets or downloading."""

__all__ = ['CHEAP', 'PARTS', 'Finding', 'Report', 'check_config', 'explain', 'refuse_faults', 'report_table']


def check_config(cfg: Config, parts: Iterable[str] = tuple(PARTS), thorough: bool = True) -> Report:
    """Look at a config, one part after the other.

    Args:
        cfg (Config): A whole config, of a distiller or of a plain model. It is not changed.
        parts (Iterable[str]): Some of :data:`PARTS`, which keep their order. Defaults to all.
        thorough (bool): Whether time may be spent: data sets are read and checkpoints downloaded, as training would do.
            Defaults to True.

    Returns:
        Report: What was found.

    Raises:
        ValueError: If there is no such part.
    """
    chosen = set(parts)
    if not chosen <= set(PARTS):
        raise ValueError(f'Pre-flight knows the parts {", ".join(PARTS)}, but got {sorted(chosen - set(PARTS))}.')
    report = Report(cfg, thorough)
    for report.part in [part for part in PARTS if part in chosen]:
        with (
            DefaultScope.overwrite_default_scope(cfg.get('default_scope', 'mmengine')),
            torch.random.fork_rng(devices=[]),  # a training after it is what it would be without
            warnings.catch_warnings(),
        ):
            # Training itself will warn; that weights without memory are not loaded is no news.
            warnings.simplefilter('ignore')
            try:
                PARTS[report.part](report)
            except Exception as error:
                if not thorough:
                    raise
                report.fault(report.part, f'Expected a config that can be read as one of mmengine: {explain(error)}')
    return report


def refuse_faults(cfg: Config) -> None:
    """Refuse a config that the cheap parts find fault with.

    Raises:
        SystemExit: If there is a fault; with all of them.
    """
    try:
        report = check_config(cfg, CHEAP, thorough=False)
    except Exception as error:  # a check that fails is no reason not to train
        print(f'Pre-flight check given up: {error!r}')
        return
    if report.faults:
        faults = '\n'.join(f'- {finding.subject}: {finding.text}' for finding in report.faults)
        raise SystemExit(
            f'{cfg.filename} cannot train:\n{faults}\nAll that a check finds: dskd check CONFIG. '
            'To train nevertheless: --no-preflight.'
        )
