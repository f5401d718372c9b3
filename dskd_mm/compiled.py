"""What :func:`torch.compile` gets of a training step: the networks, and nothing between them.

mmengine's ``compile=dict(...)`` compiles all of ``train_step``. Most of that gains nothing by it: annotations are checked,
targets assigned, locations drawn, taps opened, losses logged. Traced, it falls into a hundred graphs, and into new ones as
soon as an image has another number of objects. So a step runs as it is written, and hands the compiler only what is called in
:func:`compiled_networks` or by :func:`under_compiler`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import nn
from torch._C._dynamo.eval_frame import set_eval_frame  # type: ignore[import-not-found]

Function = TypeVar('Function', bound=Callable[..., Any])

# Not torch.compiler.disable, whose import takes two seconds: this is what torch's optimizers use.
untraced: Any = torch._disable_dynamo  # type: ignore[attr-defined]

_compiler: ContextVar[Any] = ContextVar('compiler', default=None)
"""What compiles the present step; None outside of compiled steps."""


def networks_alone(step: Function) -> Function:
    """Decorate a training step: under a compiler it runs as it is written, but for its networks."""

    @untraced(recursive=False)
    @wraps(step)
    def run(*args: Any, **kwargs: Any) -> Any:
        compiler = set_eval_frame(None)
        if compiler is None:  # not compiled, or within another such step
            return step(*args, **kwargs)
        token = _compiler.set(compiler)
        try:
            return step(*args, **kwargs)
        finally:
            _compiler.reset(token)
            set_eval_frame(compiler)

    return run


def under_compiler(function: Function) -> Function:
    """Return a function that is compiled in a step of :func:`networks_alone`; the function itself if nothing compiles."""
    compiler = _compiler.get()
    if compiler is None:
        return function

    @untraced(recursive=False)
    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        before = set_eval_frame(compiler)
        try:
            return function(*args, **kwargs)
        finally:
            set_eval_frame(before)

    return call  # type: ignore[return-value]


@contextmanager
def compiled_networks(model: nn.Module) -> Iterator[None]:
    """Have the networks of a host's model compiled, if the present step is.

    Args:
        model (nn.Module): The model. Its networks are backbone, neck and heads, those of an ``roi_head`` one by one.
    """
    found = [] if _compiler.get() is None else list(networks(model))
    # Activation checkpointing, and other wrappers, have put theirs on the module already.
    wrapped = [vars(network).get('forward') for network in found]
    for network in found:
        network.forward = under_compiler(network.forward)
    try:
        yield
    finally:
        for network, forward in zip(found, wrapped, strict=True):
            if forward is None:
                del network.forward
            else:
                network.forward = forward


def networks(model: nn.Module) -> Iterator[nn.Module]:
    """Yield the parts of a host's model that map tensors to tensors."""
    for name, part in model.named_children():
        if isinstance(part, nn.ModuleList) or name == 'roi_head':
            yield from networks(part)
        # Not what cuts proposals out of maps: their numbers are others at each call.
        elif not name.endswith(('preprocessor', 'extractor')):
            yield part
