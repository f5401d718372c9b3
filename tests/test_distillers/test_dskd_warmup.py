"""What the warm-up of DSKD scales, in every task."""

from pathlib import Path

import pytest
import torch
from rival_checks import needs_mmdet, needs_mmseg, rival_batch, rival_config
from torch import Tensor

from support import build_distiller

CASES = [
    pytest.param('gap', {'anchor', 'lsh', 'virtual', 'logit'}, id='gap'),
    pytest.param('fcn', {'anchor', 'lsh', 'virtual', 'logit', 'channel'}, id='fcn', marks=needs_mmseg),
    pytest.param('retinanet', {'anchor', 'lsh', 'virtual', 'logit', 'box'}, id='retinanet', marks=needs_mmdet),
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
