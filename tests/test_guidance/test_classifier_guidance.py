"""The guidance term in both units."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from dskd_mm.guidance import ClassifierGuidance, TeacherClassifier
from dskd_mm.structures import Target


def orthogonal_weight(classes: int, channels: int, norm: float) -> Tensor:
    """Rows at right angles, all of one length."""
    return norm * torch.linalg.qr(torch.randn(channels, channels))[0][:classes]


@settings(derandomize=True, deadline=None, max_examples=30)
@given(
    dense=st.booleans(),
    sigmoid=st.booleans(),
    scale=st.none() | st.floats(0.1, 5),
    masked=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_gradient_unit_is_autograds_gradient_of_what_the_classifier_sees(dense, sigmoid, scale, masked, seed):
    """With a scale c the classifier sees c x: the gradient of log p(y | c x) by x."""
    torch.manual_seed(seed)
    weight, bias = torch.randn(4, 3), torch.randn(4)
    x = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    factor = 1.0 if scale is None else scale
    shape = (2, 4, 4, 5) if dense else (2, 4)
    target = torch.rand(shape, dtype=torch.float64)
    mask = (torch.rand((2, 1, 4, 5) if dense else (2, 1)) > 0.5).double() if masked else None

    leaf = x.clone().requires_grad_()
    seen = factor * leaf
    if dense:
        logits = F.conv2d(seen, weight.double()[:, :, None, None], bias.double())
    else:
        logits = F.linear(seen.mean(dim=(2, 3)), weight.double(), bias.double())
    if sigmoid:
        log_p = -F.binary_cross_entropy_with_logits(logits, target, reduction='none')
    else:
        log_p = target * logits.log_softmax(dim=1)
    (expected,) = torch.autograd.grad((log_p if mask is None else log_p * mask).sum(), leaf)

    classifier = TeacherClassifier(weight[:, :, None, None] if dense else weight, bias, sigmoid)
    tensor = None if scale is None else torch.tensor(scale, dtype=torch.float64)
    guidance = ClassifierGuidance(classifier, Target(target, mask), 'gradient', tensor)
    # A scale is taken in by the weights, which are float32.
    tolerance = 1e-10 if scale is None else 1e-6
    torch.testing.assert_close(guidance(x), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize('size', [(1, 1), (4, 4), (7, 9)])
@pytest.mark.parametrize(('channels', 'norm', 'scale'), [(8, 1.0, None), (64, 0.05, None), (8, 10.0, 0.3), (32, 1.0, 4.0)])
def test_logit_unit_moves_pooled_logits_by_q_minus_p(size, channels, norm, scale):
    """A shift by G moves logits by q - p, whatever the resolution, width, weights and scale of the features."""
    torch.manual_seed(0)
    classifier = TeacherClassifier(orthogonal_weight(5, channels, norm))
    factor = 1.0 if scale is None else scale
    x = torch.randn(3, channels, *size)
    target = torch.rand(3, 5).softmax(dim=1)
    guidance = ClassifierGuidance(classifier, Target(target), 'logit', None if scale is None else torch.tensor(scale))
    before, after = classifier(factor * x), classifier(factor * (x + guidance(x)))
    torch.testing.assert_close(after - before, target - before.softmax(dim=1), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(('channels', 'norm', 'scale'), [(8, 1.0, 1.0), (64, 0.05, 1.0), (8, 10.0, 0.3)])
def test_logit_unit_moves_the_logits_of_every_location_by_q_minus_p(channels, norm, scale):
    torch.manual_seed(0)
    classifier = TeacherClassifier(orthogonal_weight(5, channels, norm)[:, :, None, None], sigmoid=True)
    x = torch.randn(2, channels, 4, 6)
    target = torch.rand(2, 5, 4, 6)
    mask = torch.ones(2, 1, 4, 6)
    mask[:, :, 0] = 0
    guidance = ClassifierGuidance(classifier, Target(target, mask), 'logit', torch.tensor(scale))
    before, after = classifier(scale * x), classifier(scale * (x + guidance(x)))
    torch.testing.assert_close(after - before, mask * (target - before.sigmoid()), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize('unit', ['gradient', 'logit'])
@pytest.mark.parametrize('dense', [False, True])
@pytest.mark.parametrize('scale', [0.2, 3.0])
def test_guidance_through_a_decoder_is_that_of_both_layers_together(unit, dense, scale):
    """A 1x1 convolution and the classifier are one linear classifier of the latent."""
    torch.manual_seed(0)
    classifier, decoder = TeacherClassifier(torch.randn(5, 12), torch.randn(5)), nn.Conv2d(4, 12, 1)
    matrix = decoder.weight.detach().flatten(1)
    both = TeacherClassifier(classifier.weight @ matrix, classifier.bias + classifier.weight @ decoder.bias)
    if dense:
        classifier, both = classifier.per_location(), both.per_location()
    x = torch.randn(2, 4, 3, 5)
    target = Target(torch.rand_like(both(x)).softmax(dim=1))
    factor = torch.tensor(scale)
    with torch.autocast('cpu', torch.bfloat16):
        gradient = ClassifierGuidance(classifier, target, unit, factor, decoder)(x)
    assert gradient.dtype == torch.float32
    torch.testing.assert_close(gradient, ClassifierGuidance(both, target, unit, factor)(x), rtol=1e-4, atol=1e-5)


def test_gain_through_a_decoder_composes_kernels():
    classifier, decoder = TeacherClassifier(torch.randn(5, 12, 3, 3)), nn.Conv2d(4, 12, 1)
    weight = torch.zeros(5, 4, 3, 3)
    for k, c, d in itertools.product(range(5), range(12), range(4)):
        weight[k, d] += classifier.weight[k, c] * decoder.weight[c, d, 0, 0].detach()
    expected = (weight**2).sum(dim=(1, 2, 3)).mean()
    torch.testing.assert_close(classifier.logit_gain(decoder), expected)


def test_units_differ_by_one_positive_number():
    torch.manual_seed(0)
    classifier = TeacherClassifier(torch.randn(5, 8))
    x, target = torch.randn(2, 8, 3, 4), Target(torch.eye(5)[[1, 3]])
    ratio = ClassifierGuidance(classifier, target, 'logit')(x) / ClassifierGuidance(classifier, target, 'gradient')(x)
    mean_squared_norm = (classifier.weight**2).sum() / 5
    torch.testing.assert_close(ratio, torch.full_like(ratio, 12.0) / mean_squared_norm)


@pytest.mark.parametrize('unit', ['logit', 'gradient'])
def test_a_classifier_without_weights_does_not_guide(unit):
    guidance = ClassifierGuidance(TeacherClassifier(torch.zeros(5, 8)), Target(torch.eye(5)[:2]), unit)
    assert guidance(torch.randn(2, 8, 3, 3)).abs().max() == 0


def test_unknown_unit_is_refused():
    with pytest.raises(ValueError, match="'logit' or 'gradient', but got 'pixel'"):
        ClassifierGuidance(TeacherClassifier(torch.zeros(5, 8)), Target(torch.eye(5)[:2]), 'pixel')
