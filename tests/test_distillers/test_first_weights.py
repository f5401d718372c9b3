"""The student's first weights: of one seed the same under every method, and those of the plain student."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.registry import MODELS as MMENGINE_MODELS
from rival_checks import needs_mmdet, needs_mmseg, rival_config
from torch import Tensor

from dskd_mm.distillers.student import build_student

METHODS = ['DSKD', 'DiffKD', 'LSHFM', 'VkD', 'SoKD', 'RTK', 'SRRL', 'SimKD', 'CrossKD', 'Configurable']
KINDS = ['gap', pytest.param('retinanet', marks=needs_mmdet), pytest.param('fcn', marks=needs_mmseg)]
ONLY = dict(SRRL='gap', SimKD='gap', CrossKD='retinanet', RTK='retinanet')


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """mmengine logs several lines for each parameter; and the numbers that follow are those of other tests."""
    logging.disable(logging.INFO)
    with torch.random.fork_rng(devices=[]):
        yield
    logging.disable(logging.NOTSET)


def begun(model: Any) -> tuple[dict[str, Tensor], Tensor]:
    """The first weights of a model's student, and the random number that comes next."""
    model.init_weights()
    student = getattr(model, 'student', model)
    return {name: value.clone() for name, value in student.state_dict().items()}, torch.rand(())


def build(config: ConfigDict) -> Any:
    torch.manual_seed(5)
    return MMENGINE_MODELS.build(config)


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('method', METHODS)
def test_of_one_seed_every_method_begins_with_the_plain_students_weights(kind: str, method: str, tmp_path: Path) -> None:
    if ONLY.get(method, kind) != kind:
        pytest.skip('for another task')
    added = dict(distill_losses=dict(mgd=dict(type='dskd_mm.MGDLoss'))) if method == 'Configurable' else {}
    config = rival_config(f'{method}Distiller', kind, tmp_path, **added)
    torch.manual_seed(5)
    plain, after = begun(build_student(config.student, None))
    found, then = begun(build(config))
    assert found.keys() == plain.keys()
    assert [name for name in plain if not torch.equal(found[name], plain[name])] == []
    assert torch.equal(then, after), 'dropout draws the same, too'


def test_other_seeds_begin_with_other_weights(tmp_path: Path) -> None:
    distiller = build(rival_config('DSKDDistiller', 'gap', tmp_path))
    first, _ = begun(distiller)
    torch.manual_seed(6)
    other, _ = begun(MMENGINE_MODELS.build(rival_config('DSKDDistiller', 'gap', tmp_path)))
    assert any(not torch.equal(first[name], other[name]) for name in first)
