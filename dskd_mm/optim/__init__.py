"""Optimizer wrappers and how they are built."""

from dskd_mm.optim.bf16 import SLOW_BF16, BF16OptimWrapper, amp_dtype
from dskd_mm.optim.constructor import StudentOptimWrapperConstructor

__all__ = ['SLOW_BF16', 'BF16OptimWrapper', 'StudentOptimWrapperConstructor', 'amp_dtype']
