"""DSKD for OpenMMLab: teacher-guided student diffusion self-distillation."""

from dskd_mm.version import __version__

__all__ = ['__version__']
