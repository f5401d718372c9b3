"""Mixed precision: which one pays where, and bfloat16 on the CPU, where mmengine has none."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from mmengine.device import get_device
from mmengine.optim import OptimWrapper
from torch import nn

from dskd_mm.registry import OPTIM_WRAPPERS

# The kernel's names for them; torch has renamed its own question with almost every release.
CPU_INFO = Path('/proc/cpuinfo')
BF16_INSTRUCTIONS = {'avx512_bf16', 'amx_bf16', 'bf16'}

SLOW_BF16 = (
    '--amp: this CPU has no instructions for bfloat16 (AVX512-BF16, AMX or those of Arm) and would be many times slower in it, '
    'so this runs in float32.'
)
"""What the tools print where ``--amp`` changes nothing."""


def cpu_has_bf16() -> bool:
    """Return whether the CPU calculates in bfloat16 itself; without such instructions it is emulated."""
    return CPU_INFO.exists() and not BF16_INSTRUCTIONS.isdisjoint(CPU_INFO.read_text().split())


def amp_dtype() -> torch.dtype:
    """Return in which precision ``--amp`` runs here: the one place that decides.

    Returns:
        torch.dtype: float16 on accelerators, bfloat16 on CPUs with instructions for it, float32 on others.
    """
    if get_device() != 'cpu':
        return torch.float16
    return torch.bfloat16 if cpu_has_bf16() else torch.float32


@OPTIM_WRAPPERS.register_module()
class BF16OptimWrapper(OptimWrapper):
    """Runs forward passes under bfloat16 autocast, on the device of the model.

    mmengine's ``AmpOptimWrapper`` refuses CPUs, yet those with AVX512-BF16 or AMX train about twice as fast in it; on others it
    is many times slower (:func:`amp_dtype`). bfloat16 has float32's range, so no loss scaler is needed. Takes the arguments of
    :class:`mmengine.optim.OptimWrapper`.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Autocast, and mmengine's own context of gradient accumulation."""
        device = next(model.parameters()).device.type
        with super().optim_context(model), torch.autocast(device, torch.bfloat16):
            yield
