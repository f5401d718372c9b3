"""What OpenMMLab's last releases (torch 2.1, mmengine 0.10.7) lack of what the current stack has: the one place for it.

``safe_globals`` and ``get_torch_safe_globals`` are those of torch and mmengine where there are such, and do the same elsewhere.
``LOADING`` are the options with which :func:`torch.load` heeds them. :func:`register_step_pre_hook` is the optimizers' own
where that can be relied upon.
"""

import pickle
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import IO, Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.utils import digit_version

LOADING: dict[str, Any]

try:
    from mmengine.runner.checkpoint import get_torch_safe_globals
    from torch.serialization import safe_globals
except ImportError:
    # torch 2.1 has weights_only, but one can allow it nothing: not even the logs in each of mmengine's own checkpoints.
    _dtypes = {str(dtype): dtype for dtype in (torch.bool, torch.uint8, torch.bfloat16)}
    _allowed: dict[str, Any] = {}

    class HarmlessPickle:
        """Of the module ``pickle`` what :func:`torch.load` uses of it, for tensors and the types that are allowed."""

        class Unpickler(pickle.Unpickler):
            """Knows the names that torch's weights_only knows, and those of ``safe_globals``."""

            def find_class(self, module: str, name: str) -> Any:
                full = f'{module}.{name}'.replace('__builtin__.', 'builtins.').replace('numpy._core.', 'numpy.core.')
                for known in (torch._weights_only_unpickler._get_allowed_globals(), _dtypes, _allowed):
                    if full in known:
                        return known[full]
                raise pickle.UnpicklingError(f'GLOBAL {full.removeprefix("builtins.")} is neither a tensor nor a plain value')

        @classmethod
        def load(cls, file: IO[bytes], **options: Any) -> Any:
            return cls.Unpickler(file, **options).load()

    LOADING = dict(pickle_module=HarmlessPickle)

    def get_torch_safe_globals() -> list[Callable]:
        arrays = np.core.multiarray  # type: ignore[attr-defined]
        # The first line is what a newer torch allows by itself.
        plain: list[Callable] = [Counter, set, bytearray, complex, torch.device]
        return [*plain, slice, arrays._reconstruct, arrays.scalar, np.ndarray, np.dtype, HistoryBuffer]

    @contextmanager  # type: ignore[no-redef]
    def safe_globals(allowed: list[Callable]) -> Iterator[None]:
        before = dict(_allowed)
        _allowed.update({f'{item.__module__}.{item.__qualname__}': item for item in allowed})
        # How Python writes bytes in the pickle protocol that torch uses.
        _allowed['_codecs.encode'] = _encode
        try:
            yield
        finally:
            _allowed.clear()
            _allowed.update(before)

    def _encode(text: str, encoding: str) -> bytes:
        if encoding != 'latin1':
            raise pickle.UnpicklingError(f'GLOBAL _codecs.encode({encoding!r})')
        return text.encode(encoding)
else:
    LOADING = dict(weights_only=True)


class StepPreHook:
    """Calls a function before each step of an optimizer, by wrapping its ``step``.

    Args:
        optimizer (torch.optim.Optimizer): The optimizer.
        hook (Callable): Called with the optimizer and the positional and named arguments of the step.
    """

    def __init__(self, optimizer: Any, hook: Callable) -> None:
        self.optimizer = optimizer
        self.step = optimizer.step

        # With the attributes by which schedulers know a step that they count.
        @wraps(self.step)
        def step(*args: Any, **kwargs: Any) -> Any:
            hook(optimizer, args, kwargs)
            return self.step(*args, **kwargs)

        self.optimizer.step = step

    def remove(self) -> None:
        """Take the wrapper off again."""
        self.optimizer.step = self.step


def register_step_pre_hook(optimizer: torch.optim.Optimizer, hook: Callable) -> Any:
    """Have a function called before each step of an optimizer.

    Until it was mended, compiling anything stopped a process from calling any optimizer's hooks.

    Args:
        optimizer (torch.optim.Optimizer): The optimizer.
        hook (Callable): Called with the optimizer and the positional and named arguments of the step.

    Returns:
        RemovableHandle | StepPreHook: ``remove()`` ends it.
    """
    if digit_version(torch.__version__) < digit_version('2.4'):
        return StepPreHook(optimizer, hook)
    return optimizer.register_step_pre_hook(hook)
