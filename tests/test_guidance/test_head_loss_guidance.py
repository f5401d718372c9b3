"""Guidance by autograd through a head."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dskd_mm.guidance import HeadLossGuidance, TeacherClassifier


@pytest.mark.parametrize('under', [torch.no_grad, torch.enable_grad])
def test_linear_head_gives_the_closed_form(under):
    torch.manual_seed(0)
    layer = nn.Linear(6, 4)
    labels = torch.tensor([1, 3, 0])
    feature = torch.randn(3, 6, 2, 5, requires_grad=True)

    def head_loss(x: Tensor) -> Tensor:
        return F.cross_entropy(layer(x.mean(dim=(2, 3))), labels, reduction='sum')

    with under():
        gradient = HeadLossGuidance(head_loss)(feature)
    expected = TeacherClassifier.from_layer(layer).gradient(feature.detach(), torch.eye(4)[labels])
    torch.testing.assert_close(gradient, expected)
    assert not gradient.requires_grad
    assert feature.grad is None
    assert layer.weight.grad is None
    assert layer.bias.grad is None


def test_convolutional_head_gives_the_closed_form():
    torch.manual_seed(0)
    layer = nn.Conv2d(6, 4, 3, padding=1)
    target = torch.rand(2, 4, 5, 5)
    feature = torch.randn(2, 6, 5, 5)

    def head_loss(x: Tensor) -> Tensor:
        return F.binary_cross_entropy_with_logits(layer(x), target, reduction='sum')

    expected = TeacherClassifier.from_layer(layer, sigmoid=True).gradient(feature, target)
    torch.testing.assert_close(HeadLossGuidance(head_loss)(feature), expected, rtol=1e-4, atol=1e-5)


def test_ascending_lowers_the_loss_of_a_deep_head():
    torch.manual_seed(0)
    head = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Tanh(), nn.Flatten(), nn.LazyLinear(3))
    feature = torch.randn(2, 4, 5, 5)

    def head_loss(x: Tensor) -> Tensor:
        return F.cross_entropy(head(x), torch.tensor([0, 2]), reduction='sum')

    before = head_loss(feature)
    assert head_loss(feature + 0.1 * HeadLossGuidance(head_loss)(feature)) < before
    assert all(p.grad is None for p in head.parameters())


def test_loss_that_does_not_depend_on_the_feature_gives_zeros():
    constant = nn.Parameter(torch.ones(()))
    assert HeadLossGuidance(lambda x: constant * 2)(torch.randn(2, 3, 4, 4)).abs().max() == 0


def test_unreduced_loss_is_refused():
    with pytest.raises(ValueError, match=r'must return a scalar, but got a tensor of shape \(2,\)'):
        HeadLossGuidance(lambda x: x.sum(dim=(1, 2, 3)))(torch.randn(2, 3, 4, 4))


def test_float16_leaves_small_gradients_there():
    """A mean over a batch of many objects leaves the background of one image less than float16 can hold."""
    torch.manual_seed(0)
    head = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 4, 3, padding=1))
    nn.init.constant_(head[-1].bias, -4.6)

    def head_loss(x: Tensor) -> Tensor:
        logits = head(x).float()
        return (logits.sigmoid().detach() ** 2 * F.softplus(logits)).sum() / 1e5

    feature = torch.randn(2, 8, 6, 6)
    expected = HeadLossGuidance(head_loss)(feature)
    with torch.autocast('cpu', torch.float16):
        leaf = feature.clone().requires_grad_()
        (naive,) = torch.autograd.grad(head_loss(leaf), leaf)
        assert not naive.any()
        gradient = HeadLossGuidance(head_loss)(feature)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=0.0)
    assert gradient.any()
