"""DSKD for OpenMMLab: teacher-guided student diffusion self-distillation."""

from importlib.util import find_spec
from typing import Any

from dskd_mm.version import __version__

if find_spec('mmengine') is None:
    # No hard requirement: OpenMMLab's and OneDL's packages share import names, and pip would install one over the other.
    raise ImportError(
        'dskd_mm needs mmengine and mmcv, which are not installed. Run `make env` in a clone, or install the extra of your '
        "task: pip install 'dskd_mm[cls]' (OneDL's packages) or 'dskd_mm[openmmlab-cls]' (OpenMMLab's)."
    )

__all__ = ['__version__', 'distil']


def __getattr__(name: str) -> Any:
    # Late: who imports the package for its version needs no distiller.
    if name == 'distil':
        from dskd_mm.pytorch import distil

        return distil
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
