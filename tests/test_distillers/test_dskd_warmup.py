"""What the warm-up of DSKD scales, in every task."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from mmengine.config import ConfigDict
from torch import Tensor

from dskd_mm.testing import (
    DENSE_SIZE,
    build_distiller,
    classifier_config,
    dense_distiller_config,
    detection_batch,
    random_batch,
    random_boxes,
    random_teacher,
    segmentation_batch,
)

CASES = {
    'gap': {'anchor', 'lsh', 'virtual', 'logit'},
    'fcn': {'anchor', 'lsh', 'virtual', 'logit', 'channel'},
    'retinanet': {'anchor', 'lsh', 'virtual', 'logit', 'box'},
}
LEARNED = {'diff', 'autoencoder'}


def first_losses(kind: str, folder: Path, warmup: int) -> dict[str, Tensor]:
    switches = dict(warmup=warmup, autoencoder=dict(latent_channels=2), noise_seed=0, lsh=dict(bits=64))
    torch.manual_seed(0)
    if kind == 'gap':
        config = ConfigDict(type='dskd_mm.DSKDDistiller', student=classifier_config(), teacher=random_teacher(str(folder)))
    else:
        config = dense_distiller_config(kind, str(folder))
    config.update(switches)
    distiller = build_distiller(config)
    if kind == 'gap':
        inputs, samples = random_batch()
        batch = dict(inputs=inputs, data_samples=samples)
    elif kind == 'fcn':
        labels = torch.zeros(2, *DENSE_SIZE, dtype=torch.long)
        labels[:, 10:30] = 1
        batch = segmentation_batch(distiller, labels)
    else:
        batch = detection_batch(distiller, [random_boxes(2, seed=i) for i in range(2)])
    return distiller(**batch, mode='loss')


@pytest.mark.skipif(not all(map(find_spec, ('mmpretrain', 'mmdet', 'mmseg'))), reason='a host is not installed')
@pytest.mark.parametrize('kind', CASES)
def test_all_but_what_the_diffusion_learns_by_begins_small(kind: str, tmp_path: Path) -> None:
    plain, warm = first_losses(kind, tmp_path, 0), first_losses(kind, tmp_path, 10)
    ours = {name.removeprefix('loss_dskd_') for name in plain if name.startswith('loss_dskd_')}
    assert ours == CASES[kind] | LEARNED
    assert float(warm['dskd_warmup']) == pytest.approx(0.1)
    for name in ours:
        value = plain[f'loss_dskd_{name}']
        assert float(value) > 0, name
        torch.testing.assert_close(warm[f'loss_dskd_{name}'], value if name in LEARNED else value / 10, msg=name)
