"""The measurement of denoised features."""

import pytest
import torch

from benchmarks import denoised
from dskd_mm.registry import MODELS
from dskd_mm.testing import classifier_config, random_batch, random_teacher


@pytest.mark.parametrize('autoencoder', [False, dict(latent_channels=8)])
def test_guidance_brings_the_denoised_feature_to_what_is_wanted(tmp_path, autoencoder):
    torch.manual_seed(0)
    config = dict(type='dskd_mm.DSKDDistiller', student=classifier_config('gap'), teacher=random_teacher(str(tmp_path)))
    distiller = MODELS.build(dict(config, target='label', autoencoder=autoencoder)).train()
    inputs, samples = random_batch(8)
    data = dict(inputs=inputs, data_samples=samples)
    distiller(**data, mode='loss')  # the spread of features is known after a step
    with torch.no_grad():
        found = denoised.measure(distiller, data, [0.5], [0.0, 20.0])
    assert set(found) == {(None, None), (0.5, 0.0), (0.5, 20.0)}
    assert found[0.5, 20.0]['accuracy'] == 100
    assert found[0.5, 20.0]['to_label'] < found[0.5, 0.0]['to_label']
    assert all(quality['to_teacher'] == quality['to_label'] for quality in found.values()), 'labels are what is wanted'
