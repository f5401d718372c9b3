"""What is logged, and its table."""

import re
from typing import Any

import pytest
import torch
from mmengine.model import BaseModel
from rival_checks import needs_mmdet, needs_mmseg, rival_batch, rival_config

from dskd_mm.report import find_log_key
from support import build_distiller

KD = dict(type='dskd_mm.KDLoss')
KINDS = ['gap', pytest.param('retinanet', marks=needs_mmdet), pytest.param('fcn', marks=needs_mmseg)]


@pytest.mark.parametrize('kind', KINDS)
def test_the_total_is_told_from_the_students_own(tmp_path: Any, kind: str) -> None:
    """A classifier's head calls its loss as mmengine calls the total. Training takes the total, whatever is logged."""
    distiller = build_distiller(rival_config('ConfigurableDistiller', kind, tmp_path, distill_losses=dict(kd=KD)))
    losses = distiller(**rival_batch(distiller, kind), mode='loss')
    total, log = distiller.parse_losses(losses)
    values = {name: float(sum(value) if isinstance(value, list) else value) for name, value in losses.items() if 'loss' in name}
    own = sum(value for name, value in values.items() if name != 'loss_kd')
    assert values['loss_kd'] > 0 and float(total) == pytest.approx(own + values['loss_kd'], rel=1e-5)
    assert float(log['loss']) == float(total) and float(log['loss_student']) == pytest.approx(own, rel=1e-5)
    plain, plain_log = BaseModel.parse_losses(distiller, losses)
    assert (
        torch.equal(total, plain)
        and list(log) == ['loss', 'loss_student', *[key for key in plain_log if key != 'loss']]
        and total.requires_grad
    )
    assert all(torch.equal(log[name], value) for name, value in plain_log.items() if name != 'loss')


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('method', ['DSKD', 'DiffKD', 'LSHFM', 'VkD', 'SoKD', 'SRRL', 'SimKD', 'CrossKD'])
def test_every_loss_of_a_method_has_a_row(tmp_path: Any, kind: str, method: str) -> None:
    only = dict(SRRL='gap', SimKD='gap', CrossKD='retinanet')
    if only.get(method, kind) != kind:
        pytest.skip('for another task')
    distiller = build_distiller(rival_config(f'{method}Distiller', kind, tmp_path))
    keys = set(distiller(**rival_batch(distiller, kind), mode='loss'))
    added = {key for key in keys if re.match(rf'loss_{method.lower()}_|distill_', key)}
    assert added
    assert {key for key in added if find_log_key(key) is None} == set()
