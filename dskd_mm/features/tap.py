"""Capturing the tensors that pass through a module of a model."""

import difflib
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


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


class FeatureTap:
    """Captures the input or output of one module while it is open, and holds no hook otherwise.

    Open it around one forward pass (a context manager); read :attr:`value` (or :attr:`values`, if the module runs several
    times, as a head shared by pyramid levels does) before it closes: closing frees the tensors. As nothing is hooked between
    passes, models stay picklable and copies of them (EMA) carry no tap.

    Outputs are captured as copies, for an in-place activation after the module would overwrite them; inputs are not copied, but
    a later in-place change is noticed.

    Args:
        model (nn.Module): The model to tap.
        path (str): Dotted path of the module.
        io (str): 'input' or 'output'. Defaults to 'output'.
        index (int, optional): Which element, if the tensor arrives in a tuple or list. None takes the last. Defaults to None.
        owner (str): How to call the model in errors. Defaults to 'model'.

    Raises:
        ValueError: If the path or ``io`` is unknown.
    """

    def __init__(self, model: nn.Module, path: str, io: str = 'output', index: int | None = None, owner: str = 'model') -> None:
        if io not in ('input', 'output'):
            raise ValueError(f"io of a tap must be 'input' or 'output', but got {io!r} for {path!r}.")
        self.module = find_module(model, path, owner)
        self.path = path
        self.io = io
        self.index = -1 if index is None else index
        self.owner = owner
        self._captured: list[tuple[Tensor, int]] = []
        self._handle: RemovableHandle | None = None
        self._grad_expected = False

    def __repr__(self) -> str:
        return f'{self.io} of {self.path!r} in the {self.owner}'

    def __enter__(self) -> 'FeatureTap':
        self._grad_expected = torch.is_grad_enabled()
        if self.io == 'input':
            self._handle = self.module.register_forward_pre_hook(self._on_input, with_kwargs=True)
        else:
            self._handle = self.module.register_forward_hook(self._on_output)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._handle is not None:
            self._handle.remove()
            self._handle = None
        self._captured.clear()

    def _on_input(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        source = args[0] if args else next(iter(kwargs.values()), None)
        self._capture(source, copy=False)

    def _on_output(self, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._capture(output, copy=True)

    def _capture(self, value: Any, copy: bool) -> None:
        if self._grad_expected and not torch.is_grad_enabled():
            raise RuntimeError(
                f'The tap on the {self!r} fired without gradients inside a training step: the module lies in an '
                'activation-checkpointed region (or under no_grad), where a tap gets no gradient. Tap the checkpointed '
                'module itself, or leave it out of activation_checkpointing.'
            )
        while isinstance(value, Sequence):
            if not -len(value) <= self.index < len(value):
                raise RuntimeError(f'The tap on the {self!r} expected an element {self.index}, but got {len(value)} elements.')
            value = value[self.index]
        if not isinstance(value, Tensor):
            raise RuntimeError(f'The tap on the {self!r} expected a tensor, but got {type(value).__name__}.')
        value = value.clone() if copy else value
        self._captured.append((value, value._version))

    @property
    def values(self) -> list[Tensor]:
        """What was captured, one tensor for every call of the module.

        Raises:
            RuntimeError: If the module did not run, or its input was changed in place afterwards.
        """
        if not self._captured:
            raise RuntimeError(
                f'The tap on the {self!r} never fired: the forward pass does not call this module. Containers such as '
                'ModuleList are not called themselves; tap one of their elements.'
            )
        for tensor, version in self._captured:
            if tensor._version != version:
                raise RuntimeError(
                    f'The {self!r} was changed in place after it was captured. Tap the output of the module before it '
                    "instead (io='output' captures a copy)."
                )
        return [tensor for tensor, _ in self._captured]

    @property
    def value(self) -> Tensor:
        """What the module's only (or last) call captured; see :attr:`values`."""
        return self.values[-1]
