"""Capturing the tensors that pass through a module of a model."""

import difflib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from types import TracebackType
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from dskd_mm.compiled import untraced

TapType = TypeVar('TapType', bound='Tap')


def find_module(model: nn.Module, path: str, owner: str = 'model') -> nn.Module:
    """Get a submodule by its dotted path, list indices included (``neck.fpn_convs.2``).

    Args:
        model (nn.Module): The model.
        path (str): The dotted path.
        owner (str): How to call the model in the error. Defaults to 'model'.

    Returns:
        nn.Module: The submodule.

    Raises:
        ValueError: If there is none; the message lists near matches.
    """
    try:
        # In every training step: no list of all modules unless the path is wrong.
        if path:
            return model.get_submodule(path)
    except AttributeError:
        pass
    near = difflib.get_close_matches(path, dict(model.named_modules()), n=5, cutoff=0.4)
    hint = f'Did you mean {", ".join(map(repr, near))}?' if near else ''
    raise ValueError(
        f'The {owner} ({type(model).__name__}) has no module {path!r}. {hint} '
        'List all paths with: [name for name, _ in model.named_modules()].'
    )


class Tap(ABC):
    """Watches one module while it is open, and holds no hook otherwise.

    Open it around one forward pass (a context manager) and read what it captured before it closes: closing frees the tensors.
    As nothing is hooked between passes, models stay picklable and copies of them (EMA) carry no tap.

    Args:
        model (nn.Module): The model to tap.
        path (str): Dotted path of the module.
        owner (str): How to call the model in errors. Defaults to 'model'.

    Raises:
        ValueError: If the path is unknown.
    """

    def __init__(self, model: nn.Module, path: str, owner: str = 'model') -> None:
        self.module = find_module(model, path, owner)
        self.path = path
        self.owner = owner
        self._captured: list[Any] = []
        self._grad_expected = False
        self._fired_without_grad = False
        self._handle: RemovableHandle | None = None

    def __repr__(self) -> str:
        return f'call of {self.path!r} in the {self.owner}'

    def __enter__(self: TapType) -> TapType:
        self._grad_expected = torch.is_grad_enabled()
        self._fired_without_grad = False
        self._handle = self._hook()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
        self._captured.clear()

    def _hook(self) -> RemovableHandle:
        return self.module.register_forward_pre_hook(self._on_call, with_kwargs=True)

    @abstractmethod
    def _on_call(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Capture what the module was called with."""

    def _is_aside(self) -> bool:
        """Return whether the module is called aside from what is trained: samplers (OHEM) ask a head under ``no_grad``, too."""
        aside = self._grad_expected and not torch.is_grad_enabled()
        self._fired_without_grad |= aside
        return aside

    @property
    def fired(self) -> bool:
        """True if the module ran."""
        return len(self._captured) > 0

    def _check_fired(self) -> None:
        if self.fired:
            return
        if self._fired_without_grad:
            raise RuntimeError(
                f'The tap on the {self!r} fired without gradients inside a training step: the module lies in an '
                'activation-checkpointed region (or under no_grad), where a tap gets no gradient. Tap the checkpointed '
                'module itself, or leave it out of activation_checkpointing.'
            )
        raise RuntimeError(
            f'The tap on the {self!r} never fired: the forward pass does not call this module. Containers such as '
            'ModuleList are not called themselves; tap one of their elements.'
        )


class CallTap(Tap):
    """Captures the arguments of every call of a module, as they are: targets given to a loss, boxes given to an extractor."""

    @untraced
    def _on_call(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self._is_aside():
            self._captured.append((args, kwargs))

    @property
    def calls(self) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        """Positional and named arguments of each call.

        Raises:
            RuntimeError: If the module did not run.
        """
        self._check_fired()
        return list(self._captured)


class FeatureTap(Tap):
    """Captures the input or output of one module: :attr:`value`, or :attr:`values` if there are several.

    Outputs are captured as copies, for an in-place activation after the module would overwrite them; inputs are not copied, but
    a later in-place change is noticed.

    Args:
        model (nn.Module): The model to tap.
        path (str): Dotted path of the module.
        io (str): 'input' or 'output'. Defaults to 'output'.
        index (int | str | tuple, optional): Which element, if the tensor arrives in a tuple or list: a number, 'all' for each
            of them as a value of its own, or None for the last. A tuple looks into nested ones: (1, 'all') for each element of
            the second. Defaults to None.
        owner (str): How to call the model in errors. Defaults to 'model'.

    Raises:
        ValueError: If the path, ``io`` or ``index`` is unknown.
    """

    def __init__(
        self,
        model: nn.Module,
        path: str,
        io: str = 'output',
        index: int | str | tuple[int | str, ...] | None = None,
        owner: str = 'model',
    ) -> None:
        if io not in ('input', 'output'):
            raise ValueError(f"io of a tap must be 'input' or 'output', but got {io!r} for {path!r}.")
        *outer, last = index if isinstance(index, tuple) else (index,)
        if not all(isinstance(step, int) for step in outer) or not (last in (None, 'all') or isinstance(last, int)):
            raise ValueError(f"index of a tap must be a number, 'all' or None for the last, but got {index!r} for {path!r}.")
        super().__init__(model, path, owner)
        self.io = io
        self.outer = outer
        self.index = -1 if last is None else last

    def __repr__(self) -> str:
        return f'{self.io} of {self.path!r} in the {self.owner}'

    def _hook(self) -> RemovableHandle:
        return super()._hook() if self.io == 'input' else self.module.register_forward_hook(self._on_output)

    @untraced  # what is captured is a tensor, not a place in a graph: changes in place show
    def _on_call(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._is_aside():
            return
        source = args[0] if args else next(iter(kwargs.values()), None)
        self._capture(self._open(source), copy=False)

    @untraced
    def _on_output(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if not self._is_aside():
            # Networks of transformers return an object that holds their logits.
            self._capture(self._open(getattr(output, 'logits', output)), copy=True)

    def _open(self, value: Any) -> Any:
        for step in self.outer:
            value = self._element(value, step)
        return value

    def _element(self, value: Sequence[Any], index: Any) -> Any:
        if not isinstance(value, Sequence) or not -len(value) <= index < len(value):
            got = f'{len(value)} elements' if isinstance(value, Sequence) else type(value).__name__
            raise RuntimeError(f'The tap on the {self!r} expected an element {index}, but got {got}.')
        return value[index]

    def _capture(self, value: Any, copy: bool) -> None:
        if self.index == 'all' and isinstance(value, Sequence):
            for element in value:
                self._capture(element, copy)
            return
        while isinstance(value, Sequence):
            value = self._element(value, self.index)
        if not isinstance(value, Tensor):
            raise RuntimeError(f'The tap on the {self!r} expected a tensor, but got {type(value).__name__}.')
        value = value.clone() if copy else value
        self._captured.append((value, value._version))

    @property
    def values(self) -> list[Tensor]:
        """Return what was captured, one tensor for every call of the module (and element).

        Raises:
            RuntimeError: If the module did not run, or its input was changed in place afterwards.
        """
        self._check_fired()
        for tensor, version in self._captured:
            if tensor._version != version:
                raise RuntimeError(
                    f'The {self!r} was changed in place after it was captured. Tap the output of the module before it '
                    "instead (io='output' captures a copy)."
                )
        return [tensor for tensor, _ in self._captured]

    @property
    def value(self) -> Tensor:
        """Return what the module's only (or last) call captured; see :attr:`values`."""
        return self.values[-1]
