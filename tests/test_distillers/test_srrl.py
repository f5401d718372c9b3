"""SRRL: its losses against the authors' formula, and training of classifiers."""

import pytest
import torch
from rival_checks import assert_behaves, needs_mmseg, rival_config
from torch.nn import functional as F

from dskd_mm.structures import ModelOutputs, Target
from support import assert_refused, build_distiller

METHOD = 'SRRLDistiller'


@pytest.mark.parametrize('relu', [True, False])
def test_the_losses_are_the_formula(tmp_path, relu):
    """As the authors' training script has it: a connector, the gap of means, the classifier of the teacher on the connected."""
    distiller = build_distiller(rival_config(METHOD, 'gap', tmp_path, relu=relu, loss_weights=dict(feature=2.0, logit=0.5)))
    distiller.load_teacher()
    torch.manual_seed(0)
    ours, theirs = torch.randn(4, 16, 3, 2, requires_grad=True), torch.randn(4, 24, 3, 2)
    opinion = torch.randn(4, 5)
    found = distiller.distill(ModelOutputs([ours], [torch.randn(4, 5)]), ModelOutputs([theirs], [opinion]), Target(None), None)
    convolution, norm = distiller.align.layers
    connected = F.conv2d(ours, convolution.weight)
    mean, variance = connected.mean(dim=(0, 2, 3), keepdim=True), connected.var(dim=(0, 2, 3), unbiased=False, keepdim=True)
    connected = (connected - mean) / (variance + norm.eps).sqrt()
    connected = connected.clamp(min=0) if relu else connected
    x, y = connected.view(4, 24, -1), theirs.view(4, 24, -1)
    gap = (x.mean(dim=2) - y.mean(dim=2)).pow(2).mean(1).mean()
    (classifier,) = distiller.teacher.classifiers
    predicted = F.linear(F.adaptive_avg_pool2d(connected, 1).flatten(1), classifier.weight, classifier.bias)
    torch.testing.assert_close(found['loss_srrl_feature'], 2.0 * gap)
    torch.testing.assert_close(found['loss_srrl_logit'], 0.5 * F.mse_loss(predicted, opinion))
    assert set(found) == {'loss_srrl_feature', 'loss_srrl_logit'}


@pytest.mark.parametrize(('kind', 'switches'), [('gap', {}), ('vit', dict(relu=False)), ('multi_label', {})])
def test_it_trains_and_resumes(tmp_path, kind, switches):
    assert_behaves(rival_config(METHOD, kind, tmp_path, **switches), kind, 'srrl', {'_feature', '_logit'})


@needs_mmseg
def test_it_is_for_images(tmp_path):
    assert_refused(rival_config(METHOD, 'fcn', tmp_path), lambda config: None, ['classifiers of images', 'SegmentationSite'])


def test_unknown_weights_are_refused(tmp_path):
    config = rival_config(METHOD, 'gap', tmp_path)
    assert_refused(config, lambda config: config.update(loss_weights=dict(kd=1.0)), ["'feature', 'logit'", "'kd'"])
