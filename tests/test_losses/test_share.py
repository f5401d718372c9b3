"""A loss weighed by its share of another's gradient."""

import pytest
import torch

from dskd_mm.losses import GradientShare


def test_the_gradient_becomes_the_share():
    share = GradientShare(0.3)
    x = torch.randn(4, 5, requires_grad=True)
    loss, reference = 0.1 * x.sin().sum(), 7 * x.square().sum()
    weighted = share(loss, reference, x) * loss
    own, theirs = (torch.autograd.grad(value, x, retain_graph=True)[0].norm() for value in (weighted, reference))
    torch.testing.assert_close(own, 0.3 * theirs)
    # It takes part in the step like any loss.
    (weighted + reference).backward()
    assert x.grad.abs().max() > 0


def test_norms_are_followed_slowly():
    share = GradientShare(1.0, momentum=0.25)
    x = torch.ones(1, requires_grad=True)
    assert float(share(x.sum(), 2 * x.sum(), x)) == pytest.approx(2)
    assert float(share(x.sum(), 6 * x.sum(), x)) == pytest.approx(0.75 * 2 + 0.25 * 6)
    assert share.state_dict()['norms'].tolist() == pytest.approx([3.0, 1.0])


def test_a_loss_that_has_vanished_is_not_blown_up():
    share = GradientShare(0.3, limit=50.0)
    x = torch.ones(3, requires_grad=True)
    assert share(1e-9 * x.sum(), x.sum(), x) == 50
    assert GradientShare(0.3)(0 * x.sum(), x.sum(), x) == 0


def test_the_reference_counts_where_the_loss_may_have_a_gradient():
    share = GradientShare(0.5)
    x = torch.ones(4, 2, requires_grad=True)
    counts = torch.tensor([1.0, 0.0, 0.0, 0.0])[:, None]
    weight = share((x * counts).sum(), 3 * x.sum(), x, counts)
    assert float(weight) == pytest.approx(0.5 * 3)
    # With some that do not count for the share of those that do is the same.
    assert float(GradientShare(0.5)(x.sum(), 3 * x.sum(), x)) == pytest.approx(0.5 * 3)


def test_nothing_is_followed_in_evaluation():
    share = GradientShare(0.5)
    x = torch.ones(2, requires_grad=True)
    share(x.sum(), 4 * x.sum(), x)
    before = share.norms.clone()
    share.eval()(x.sum(), 9 * x.sum(), x)
    assert torch.equal(share.norms, before)


def test_numbers_that_are_lost_are_forgotten_and_without_a_graph_nothing_is_followed():
    share = GradientShare(0.5)
    x = torch.ones(2, requires_grad=True)
    before = float(share(x.sum(), 4 * x.sum(), x))
    assert float(share(x.sum() * float('inf'), x.sum(), x)) == before
    with torch.no_grad():
        assert float(share(x.sum(), 9 * x.sum(), x)) == before
