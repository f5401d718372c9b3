"""Losses: tensors in, scalar out."""

from dskd_mm.losses.base import AlignedFeatureLoss, FeatureLoss, LogitLoss
from dskd_mm.losses.dist import DISTLoss
from dskd_mm.losses.dkd import DKDLoss
from dskd_mm.losses.kd import KDLoss
from dskd_mm.losses.lsh import LSHDistillLoss

__all__ = [
    'AlignedFeatureLoss',
    'DISTLoss',
    'DKDLoss',
    'FeatureLoss',
    'KDLoss',
    'LSHDistillLoss',
    'LogitLoss',
]
