"""The student's first weights: of one seed the same under every method, and those of the plain student."""

from pathlib import Path

import pytest
import torch
from rival_checks import needs_mmdet, needs_mmseg, rival_config
from torch import Tensor

from support import initialised

METHODS = ['DSKD', 'DiffKD', 'LSHFM', 'VkD', 'SoKD', 'RTK', 'SRRL', 'SimKD', 'CrossKD', 'Configurable']
KINDS = ['gap', pytest.param('retinanet', marks=needs_mmdet), pytest.param('fcn', marks=needs_mmseg)]
ONLY = dict(SRRL='gap', SimKD='gap', CrossKD='retinanet', RTK='retinanet')


def begun(config: dict, seed: int = 5) -> tuple[dict[str, Tensor], Tensor]:
    """The first weights of a model's student, and the random number that comes next."""
    with initialised(config, seed) as model:
        student = getattr(model, 'student', model)
        return {name: value.clone() for name, value in student.state_dict().items()}, torch.rand(())


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('method', METHODS)
def test_of_one_seed_every_method_begins_with_the_plain_students_weights(kind: str, method: str, tmp_path: Path) -> None:
    if ONLY.get(method, kind) != kind:
        pytest.skip('for another task')
    added = dict(distill_losses=dict(mgd=dict(type='dskd_mm.MGDLoss'))) if method == 'Configurable' else {}
    config = rival_config(f'{method}Distiller', kind, tmp_path, **added)
    plain, after = begun(config.student)
    found, then = begun(config)
    assert found.keys() == plain.keys()
    assert [name for name in plain if not torch.equal(found[name], plain[name])] == []
    assert torch.equal(then, after), 'dropout draws the same, too'


def test_other_seeds_begin_with_other_weights(tmp_path: Path) -> None:
    config = rival_config('DSKDDistiller', 'gap', tmp_path)
    (first, _), (other, _) = (begun(config, seed) for seed in (5, 6))
    assert any(not torch.equal(first[name], other[name]) for name in first)
