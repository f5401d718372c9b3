"""Losses: tensors in, scalar out."""

from dskd_mm.losses.base import FeatureLoss, LogitLoss
from dskd_mm.losses.kd import KDLoss
from dskd_mm.losses.lsh import LSHDistillLoss

__all__ = ['FeatureLoss', 'KDLoss', 'LSHDistillLoss', 'LogitLoss']
