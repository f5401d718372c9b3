"""Taps capture what passes through a module, once, and leave nothing behind."""

import copy
import gc
import pickle
import weakref

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from dskd_mm.features import CallTap, FeatureTap, find_module


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


def test_unknown_index_is_refused(model):
    with pytest.raises(ValueError, match="a number, 'all' or None for the last, but got 'last' for 'stem'"):
        FeatureTap(model, 'stem', index='last')


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
    with FeatureTap(model, 'inner.0') as tap:
        model(images.requires_grad_())
        with pytest.raises(RuntimeError, match='activation-checkpointed region'):
            _ = tap.value


def test_calls_aside_from_what_is_trained_are_left_out(images):
    """Samplers ask a head under no_grad before it is trained."""
    model = nn.Sequential(nn.Conv2d(3, 4, 1))
    with FeatureTap(model, '0') as tap, CallTap(model, '0') as call:
        with torch.no_grad():
            model(images + 1)
        model(images)
        (value,), (((inputs,), _),) = tap.values, call.calls
        assert value.requires_grad and inputs is images
    with torch.no_grad(), FeatureTap(model, '0') as tap:  # a teacher's, which has no gradients at all
        model(images)
        assert len(tap.values) == 1


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


class Nested(nn.Module):
    """Returns levels, one of them inside another tuple."""

    def forward(self, x: Tensor) -> tuple:
        return x, [2 * x, 3 * x]


@pytest.mark.parametrize(('path', 'io'), [('pair', 'output'), ('head', 'input')])
def test_all_elements_are_values_of_their_own(model, images, path, io):
    with FeatureTap(model, path, io, 'all') as tap:
        model(images)
        base = tap.values[0]
        torch.testing.assert_close(tap.values, [base, 2 * base])
        assert tap.value is tap.values[-1]
    torch.testing.assert_close(base, run(model, images, 'pair', 'input'))


def test_all_elements_of_what_is_nested_and_of_a_tensor_alone(images):
    model = nn.Sequential(Nested(), nn.Identity())
    with FeatureTap(model, '0', index='all') as tap, FeatureTap(model, '0', 'input', 'all') as alone:
        model(images)
        torch.testing.assert_close(tap.values, [images, 2 * images, 3 * images])
        assert [value is images for value in alone.values] == [True]


def test_all_elements_of_every_call_in_their_order(model, images):
    with FeatureTap(model, 'pair', 'output', 'all') as tap:
        model(images)
        model(-images)
        assert len(tap.values) == 4
        torch.testing.assert_close(tap.values[1], 2 * tap.values[0])
        torch.testing.assert_close(tap.values[3], 2 * tap.values[2])
        assert not torch.allclose(tap.values[0], tap.values[2])


def test_all_elements_have_gradients_and_are_checked(images):
    class Levels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1)])

        def forward(self, x: Tensor) -> list[Tensor]:
            return [layer(x) for layer in self.layers]

    model = nn.Sequential(Levels())
    with FeatureTap(model, '0', index='all') as tap:
        outputs = model(images)
        for output in outputs:
            output.detach().zero_()  # copies were captured
        sum(value.square().sum() for value in tap.values).backward()
    assert all(layer.weight.grad.abs().max() > 0 for layer in model[0].layers)

    with FeatureTap(model, '0', 'input', 'all') as tap:
        pair = [images.clone(), images.clone()]
        with pytest.raises(TypeError):
            model(pair)  # a convolution takes no list; the tap has seen it
        pair[0].add_(1)
        with pytest.raises(RuntimeError, match='changed in place'):
            _ = tap.values


def test_an_element_that_is_no_tensor_is_an_error(images):
    class Mixed(nn.Module):
        def forward(self, x: Tensor) -> tuple:
            return x, None

    with pytest.raises(RuntimeError, match="output of '0' in the model expected a tensor, but got NoneType"):
        run(nn.Sequential(Mixed()), images, '0', 'output', 'all')


class Loss(nn.Module):
    """Takes its arguments as the hosts' losses do."""

    def forward(self, pred: Tensor, target: Tensor, weight: Tensor | None = None, avg_factor: float = 1.0) -> Tensor:
        return (pred - target).square().sum() / avg_factor


class Head(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 2)
        self.loss = Loss()
        self.unused = nn.Identity()

    def forward(self, levels: list[Tensor]) -> Tensor:
        return sum(self.loss(self.layer(x), torch.zeros(2), weight=None, avg_factor=i + 1.0) for i, x in enumerate(levels))


def test_arguments_of_every_call_are_captured_as_they_are():
    model, levels = Head(), list(torch.randn(3, 4, 3))
    with CallTap(model, 'loss') as tap, FeatureTap(model, 'layer') as outputs:
        model(levels).backward()
        assert len(tap.calls) == 3
        for i, ((pred, target), kwargs) in enumerate(tap.calls):
            torch.testing.assert_close(pred, outputs.values[i])
            assert pred.requires_grad
            assert torch.equal(target, torch.zeros(2))
            assert kwargs == dict(weight=None, avg_factor=i + 1.0)
        assert tap.calls is not tap.calls, 'a list of its own: who changes it changes nothing here'


def test_arguments_may_be_anything():
    class Extractor(nn.Module):
        def forward(self, *args, **kwargs) -> int:
            return len(args)

    model = nn.Sequential(Extractor())
    levels, rois = (torch.zeros(1), torch.ones(2)), object()
    with CallTap(model, '0') as tap:
        model[0](levels, rois=rois)
        model[0]()
        ((args, kwargs), empty) = tap.calls
        assert args == (levels,) and args[0] is levels
        assert kwargs['rois'] is rois
        assert empty == ((), {})


def test_a_call_that_never_comes_is_an_error():
    model = Head()
    with CallTap(model, 'unused', owner='student') as tap:
        model(list(torch.randn(3, 4, 3)))
        with pytest.raises(RuntimeError, match=r"tap on the call of 'unused' in the student never fired"):
            _ = tap.calls
    with pytest.raises(ValueError, match=r"student \(Head\) has no module 'los'.*'loss'"):
        CallTap(model, 'los', owner='student')


def test_closing_a_tap_on_calls_frees_the_arguments_and_the_hook():
    model, levels = Head(), list(torch.randn(3, 4, 3))
    tap = CallTap(model, 'loss')
    for _ in range(2):
        with tap:
            model(levels)
            assert len(tap.calls) == 3, 'nothing is left of the pass before'
            freed = weakref.ref(tap.calls[0][0][0])
            assert freed() is not None
    gc.collect()
    assert freed() is None
    assert not model.loss._forward_pre_hooks
    with pytest.raises(RuntimeError, match='never fired'):
        _ = tap.calls
    with pytest.raises(ZeroDivisionError), tap:
        model(levels)
        _ = 1 / 0
    assert not model.loss._forward_pre_hooks
    twin = pickle.loads(pickle.dumps(model))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in twin.modules())


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
