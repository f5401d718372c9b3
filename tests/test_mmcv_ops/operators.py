"""Runs mmcv's Python functions on operators of one's choice."""

import importlib
import pkgutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from cases import Case, Draw
from torch import Tensor

KEPT = 256


@contextmanager
def patched(ext: Any) -> Iterator[None]:
    """Let all modules of `mmcv.ops` call `ext` instead of mmcv's own `_ext`."""
    import mmcv.ops

    modules = [importlib.import_module(f'mmcv.ops.{info.name}') for info in pkgutil.iter_modules(mmcv.ops.__path__)]
    before = {module: module.ext_module for module in modules if hasattr(module, 'ext_module')}
    try:
        for module in before:
            module.ext_module = ext  # type: ignore[attr-defined]
        yield
    finally:
        for module, own in before.items():
            module.ext_module = own  # type: ignore[attr-defined]


def run_case(name: str, case: Case, dtype: torch.dtype, device: str = 'cpu') -> list[Tensor]:
    return case.run(Draw(name, dtype, device))


def compared(result: Tensor) -> np.ndarray:
    """Return what of a result is compared: all of it, or elements at equal distances of a large one."""
    flat = result.detach().cpu().flatten().numpy()
    return flat if flat.size <= KEPT else flat[np.linspace(0, flat.size - 1, KEPT).astype(int)]
