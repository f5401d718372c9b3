"""Optimizer wrappers and how they are built."""

from dskd_mm.optim.bf16 import BF16OptimWrapper
from dskd_mm.optim.constructor import StudentOptimWrapperConstructor

__all__ = ['BF16OptimWrapper', 'StudentOptimWrapperConstructor']
