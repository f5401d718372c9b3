"""Taps capture what passes through a module, once, and leave nothing behind."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dskd_mm.features import FeatureTap, find_module


class Pair(nn.Module):
    """Returns two maps in a tuple."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, 2 * x


class Toy(nn.Module):
    """A stem, two branches in a list, a pair and a head that takes the pair."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.branches = nn.ModuleList([nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)])
        self.pair = Pair()
        self.head = Sum()
        self.unused = nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for branch in self.branches:
            x = branch(x)
        return self.head(self.pair(x))


class Sum(nn.Module):
    def forward(self, pair: tuple[Tensor, Tensor]) -> Tensor:
        return pair[0] + pair[1]


@pytest.fixture
def model() -> Toy:
    torch.manual_seed(0)
    return Toy()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))


def run(model: nn.Module, images: Tensor, *args, **kwargs) -> Tensor:
    with FeatureTap(model, *args, **kwargs) as tap:
        model(images)
        return tap.value


def test_element_of_a_list_by_its_index(model, images):
    expected = model.branches[1](model.branches[0](model.stem(images)))
    torch.testing.assert_close(run(model, images, 'branches.1'), expected)
    assert find_module(model, 'branches.1') is model.branches[1]


def test_input_is_what_entered(model, images):
    expected = model.branches[0](model.stem(images))
    torch.testing.assert_close(run(model, images, 'branches.1', 'input'), expected)


@pytest.mark.parametrize(('index', 'factor'), [(None, 2), (0, 1), (1, 2), (-2, 1)])
@pytest.mark.parametrize(('path', 'io'), [('pair', 'output'), ('head', 'input')])
def test_element_of_a_tuple(model, images, path, io, index, factor):
    base = run(model, images, 'pair', 'input')
    torch.testing.assert_close(run(model, images, path, io, index), factor * base)


def test_input_given_by_keyword():
    class Caller(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(input=x)

    x = torch.randn(2, 3)
    torch.testing.assert_close(run(Caller(), x, 'inner', 'input'), x)


def test_gradient_flows_through_the_captured_tensor(model, images):
    with FeatureTap(model, 'branches.0') as tap:
        model(images)
        tap.value.sum().backward()
    assert model.stem.weight.grad.abs().max() > 0
    assert model.branches[1].weight.grad is None


@pytest.mark.parametrize('activation', [nn.ReLU(inplace=True), nn.Hardswish(inplace=True)])
def test_output_survives_an_activation_in_place(activation, images):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), activation)
    expected = model[1](model[0](images)).detach()
    with FeatureTap(model, '1') as tap:
        out = model(images)
        torch.testing.assert_close(tap.value, expected)
        assert tap.value.min() < 0
        (tap.value.sum() + out.sum()).backward()
    assert torch.isfinite(model[0].weight.grad).all()


def test_input_changed_in_place_is_noticed(images):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(inplace=True))
    with FeatureTap(model, '1', 'input') as tap:
        model(images)
        with pytest.raises(RuntimeError, match=r"input of '1' in the model was changed in place.*io='output'"):
            _ = tap.value


def test_unknown_path_lists_near_matches(model):
    with pytest.raises(ValueError, match=r"student \(Toy\) has no module 'branch.1'.*'branches.1'"):
        FeatureTap(model, 'branch.1', owner='student')
    with pytest.raises(ValueError, match='named_modules'):
        FeatureTap(model, 'zzzzzz')
    with pytest.raises(ValueError, match="has no module ''"):
        FeatureTap(model, '')


def test_unknown_side_is_refused(model):
    with pytest.raises(ValueError, match="'input' or 'output', but got 'both' for 'stem'"):
        FeatureTap(model, 'stem', 'both')


@pytest.mark.parametrize('path', ['unused', 'branches'])
def test_module_that_is_never_called_is_an_error(model, images, path):
    with pytest.raises(RuntimeError, match=f'output of {path!r} in the model never fired.*ModuleList'):
        run(model, images, path)


def test_missing_element_and_wrong_type_are_errors(model, images):
    with pytest.raises(RuntimeError, match='expected an element 5, but got 2 elements'):
        run(model, images, 'pair', 'output', 5)

    class Strings(nn.Module):
        def forward(self, x: Tensor) -> dict:
            return dict(x=x)

    with pytest.raises(RuntimeError, match='expected a tensor, but got dict'):
        run(nn.Sequential(Strings()), images, '0')


class Checkpointed(nn.Module):
    """Its inner module is recomputed in the backward pass, as with_cp=True of the hosts' backbones does."""

    def __init__(self, use_reentrant: bool) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Sigmoid())
        self.use_reentrant = use_reentrant

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.inner, x, use_reentrant=self.use_reentrant)


def test_tap_inside_a_checkpointed_region_is_refused(images):
    model = Checkpointed(use_reentrant=True)
    with FeatureTap(model, 'inner.0'), pytest.raises(RuntimeError, match='activation-checkpointed region'):
        model(images.requires_grad_())


def test_tap_on_the_result_of_a_checkpointed_region_gets_a_gradient(images):
    model = nn.Sequential(Checkpointed(use_reentrant=True), nn.Identity())
    with FeatureTap(model, '0') as tap:
        model(images.requires_grad_())
        tap.value.sum().backward()
    assert model[0].inner[0].weight.grad.abs().max() > 0


def test_tap_inside_a_region_without_reentry_gets_the_gradient_of_a_plain_run(images):
    gradients = []
    for model in (Checkpointed(use_reentrant=False), Checkpointed(use_reentrant=False).inner):
        torch.manual_seed(0)
        for parameter in model.parameters():
            nn.init.normal_(parameter)
        with FeatureTap(model, 'inner.0' if isinstance(model, Checkpointed) else '0') as tap:
            out = model(images)
            (tap.value.square().sum() + out.sum()).backward()
        gradients.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(*gradients)


def test_a_pass_without_gradients_is_fine_where_none_are_expected(model, images):
    with torch.no_grad():
        assert not run(model, images, 'stem').requires_grad


def test_several_calls_give_several_values():
    shared = nn.Linear(3, 2)

    class Levels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = shared

        def forward(self, levels: list[Tensor]) -> list[Tensor]:
            return [self.head(level) for level in levels]

    levels = list(torch.randn(3, 4, 3))
    model = Levels()
    with FeatureTap(model, 'head') as tap:
        outputs = model(levels)
        torch.testing.assert_close(tap.values, outputs)
        assert torch.equal(tap.value, outputs[-1])


def test_closing_frees_the_tensors_and_the_hook(model, images):
    tap = FeatureTap(model, 'stem')
    with tap:
        model(images)
        freed = weakref.ref(tap.value)
        assert freed() is not None
    gc.collect()
    assert freed() is None
    assert not model.stem._forward_hooks
    model(images)
    with pytest.raises(RuntimeError, match='never fired'):
        _ = tap.value


def test_an_error_in_the_pass_leaves_no_hook(model, images):
    with pytest.raises(ZeroDivisionError), FeatureTap(model, 'stem'):
        model(images)
        _ = 1 / 0
    assert not model.stem._forward_hooks


@pytest.mark.parametrize('io', ['input', 'output'])
def test_copies_and_pickles_between_passes_carry_no_hook(model, images, io):
    tap = FeatureTap(model, 'stem', io)
    for _ in range(2):
        with tap:
            model(images)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in twin.modules())
        torch.testing.assert_close(twin(images), model(images))
