"""Optimizer wrappers."""

from dskd_mm.optim.bf16 import BF16OptimWrapper

__all__ = ['BF16OptimWrapper']
