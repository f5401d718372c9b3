"""Can the schedules of learning rates be built?"""

from typing import Any

import torch
from mmengine.config import ConfigDict
from mmengine.registry import PARAM_SCHEDULERS

from dskd_mm.preflight.report import Report, explain
from dskd_mm.utils.config import type_name

EPOCH_LENGTH = 1000
"""Iterations that an epoch is taken to have: the data need not be there."""


def check_schedule(report: Report) -> None:
    """Build the parameter schedulers as the runner does once data and models are loaded, on one parameter."""
    schedulers = report.cfg.get('param_scheduler') or []
    if isinstance(schedulers, dict) and 'type' not in schedulers:
        return  # one for each of several optimizers
    train_cfg = report.cfg.get('train_cfg') or {}
    schedulers = [schedulers] if isinstance(schedulers, dict) else schedulers
    report.note('schedule', ', '.join(type_name(scheduler) for scheduler in schedulers) or 'constant')
    for i, scheduler in enumerate(schedulers):
        config = ConfigDict(scheduler)
        by_epoch = config.get('by_epoch', True)
        end = train_cfg.get('max_epochs' if by_epoch else 'max_iters')
        if end is not None:
            config.setdefault('end', end)
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
        arguments: dict[str, Any] = dict(optimizer=optimizer, epoch_length=EPOCH_LENGTH)
        subject = f'param_scheduler.{i}'
        begin = config.get('begin', 0)
        try:
            PARAM_SCHEDULERS.build(config, default_args=arguments)
        except Exception as error:
            late = ''
            if end is not None and begin >= end:
                unit = 'epochs' if by_epoch else 'iterations'
                late = f' It begins at {begin}, but training has {end} {unit}: take it out, or train longer.'
            report.fault(subject, f'{explain(error)}{late}')
            continue
        if end is not None and begin >= end:
            report.note(subject, f'{type_name(config)} begins at {begin}, after the end of training at {end}: it never runs')
