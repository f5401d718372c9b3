"""What the warm-up scales, in every task and method, and how long it is."""

from pathlib import Path

import pytest
import torch
from mmengine.logging import MessageHub
from rival_checks import needs_mmdet, needs_mmseg, rival_batch, rival_config
from torch import Tensor

from dskd_mm.distillers.options import MethodOptions
from support import build_distiller

CASES = [
    pytest.param('gap', {'anchor', 'lsh', 'logit'}, id='gap'),
    pytest.param('fcn', {'anchor', 'lsh', 'logit', 'channel'}, id='fcn', marks=needs_mmseg),
    pytest.param('retinanet', {'anchor', 'lsh', 'logit', 'box'}, id='retinanet', marks=needs_mmdet),
]
LEARNED = {'diff', 'autoencoder'}


def first_losses(kind: str, folder: Path, warmup: int) -> dict[str, Tensor]:
    torch.manual_seed(0)
    switches = dict(warmup=warmup, autoencoder=dict(latent_channels=2), lsh=dict(bits=64), gate=False)
    distiller = build_distiller(rival_config('DSKDDistiller', kind, folder, **switches))
    return distiller(**rival_batch(distiller, kind), mode='loss')


@pytest.mark.parametrize(('kind', 'warmed'), CASES)
def test_all_but_what_the_diffusion_learns_by_begins_small(kind: str, warmed: set[str], tmp_path: Path) -> None:
    plain, warm = first_losses(kind, tmp_path, 0), first_losses(kind, tmp_path, 10)
    ours = {name.removeprefix('loss_dskd_') for name in plain if name.startswith('loss_dskd_')}
    assert ours == warmed | LEARNED
    assert float(warm['distill_warmup']) == pytest.approx(0.1)
    for name in ours:
        value = plain[f'loss_dskd_{name}']
        assert float(value) > 0, name
        torch.testing.assert_close(warm[f'loss_dskd_{name}'], value if name in LEARNED else value / 10, msg=name)


STAGE = dict(student=dict(path='backbone.layer2'), teacher=dict(path='backbone.layer2'))
METHODS: dict[str, dict] = dict(
    ConfigurableDistiller=dict(distill_losses=dict(kd=dict(type='dskd_mm.KDLoss'))),
    DSKDDistiller={},
    DiffKDDistiller={},
    LSHFMDistiller={},
    RTKDistiller=dict(layers=dict(a=STAGE, b=STAGE)),
    SRRLDistiller={},
    SimKDDistiller={},
    SoKDDistiller={},
    VkDDistiller={},
)


@pytest.mark.parametrize('method', METHODS)
def test_one_rule_for_all_methods(method: str, tmp_path: Path) -> None:
    """200 iterations for images, all losses on the student, by the same factor."""
    values = {}
    for warmup in (0, None):
        torch.manual_seed(0)
        distiller = build_distiller(rival_config(method, 'gap', tmp_path, warmup=warmup, **METHODS[method]))
        values[warmup] = distiller(**rival_batch(distiller, 'gap'), mode='loss')
    assert float(values[None]['distill_warmup']) == pytest.approx(1 / 200)
    added = {name for name in values[0] if name.startswith('loss_')}
    assert added
    for name in added:
        learned = name.endswith(('_diff', '_autoencoder'))
        expected = values[0][name] if learned else values[0][name] / 200
        torch.testing.assert_close(values[None][name], expected, rtol=1e-3, atol=1e-6, msg=name)


@pytest.mark.parametrize('kind', [pytest.param('fcn', marks=needs_mmseg), pytest.param('retinanet', marks=needs_mmdet)])
@pytest.mark.parametrize('method', ['DSKDDistiller', 'VkDDistiller'])
def test_elsewhere_there_is_none(kind: str, method: str, tmp_path: Path) -> None:
    assert build_distiller(rival_config(method, kind, tmp_path, warmup=None)).options.warmup == 0


@pytest.mark.parametrize('method', ['ConfigurableDistiller', 'DSKDDistiller', 'DiffKDDistiller'])
@pytest.mark.parametrize('warmup', [0, 10])
def test_a_weight_for_all_losses_on_the_student(method: str, warmup: int, tmp_path: Path) -> None:
    values = {}
    for weight in (1.0, 0.3):
        torch.manual_seed(0)
        switches = METHODS[method] | dict(warmup=warmup, distill_weight=weight)
        distiller = build_distiller(rival_config(method, 'gap', tmp_path, **switches))
        values[weight] = distiller(**rival_batch(distiller, 'gap'), mode='loss')
    for name, value in values[1.0].items():
        weighed = name.startswith('loss_') and not name.endswith(('_diff', '_autoencoder'))
        torch.testing.assert_close(values[0.3][name], 0.3 * value if weighed else value, msg=name)
    with pytest.raises(ValueError, match=f'distill_weight of {method} must not be negative, but got -1'):
        build_distiller(rival_config(method, 'gap', tmp_path, **METHODS[method], distill_weight=-1))


def test_an_added_loss_is_warmed_up_whatever_it_is_called(tmp_path: Path) -> None:
    torch.manual_seed(0)
    added = {name: dict(type='dskd_mm.KDLoss') for name in ('kd', 'my_diff')}
    distiller = build_distiller(rival_config('DSKDDistiller', 'gap', tmp_path, warmup=100, distill_losses=added))
    losses = distiller(**rival_batch(distiller, 'gap'), mode='loss')
    assert float(losses['loss_kd']) > 0
    torch.testing.assert_close(losses['loss_my_diff'], losses['loss_kd'])


@pytest.mark.parametrize(('iterations', 'is_told'), [(12, True), (400, False), (None, False)])
def test_a_training_that_hardly_distils_is_told(
    iterations: int | None, is_told: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the first step, whoever runs it."""
    told: list[str] = []
    monkeypatch.setattr('dskd_mm.distillers.options.print_log', lambda text, *args: told.append(text))
    monkeypatch.setitem(MessageHub.get_current_instance().runtime_info, 'max_iters', iterations)
    distiller = build_distiller(rival_config('DSKDDistiller', 'gap', tmp_path, warmup=200))
    for _ in range(2):
        distiller(**rival_batch(distiller, 'gap'), mode='loss')
    text = 'The distillation losses grow over 200 iterations, but this training has 12: set model.warmup=1, or train longer.'
    assert told == ([text] if is_told else [])
    assert not MethodOptions(warmup=1).warmup_problem(12), 'the mend works'
