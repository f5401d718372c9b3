"""Losses: pure tensors in, scalar out."""

from dskd_mm.losses.lsh import LSHDistillLoss

__all__ = ['LSHDistillLoss']
