"""Losses: tensors in, scalar out."""

from dskd_mm.losses.at import ATLoss
from dskd_mm.losses.base import AlignedFeatureLoss, DistillLoss, FeatureLoss, LogitLoss
from dskd_mm.losses.box import BoxLoss
from dskd_mm.losses.build import build_loss, build_losses
from dskd_mm.losses.cwd import CWDLoss
from dskd_mm.losses.dist import DISTLoss
from dskd_mm.losses.dkd import DKDLoss
from dskd_mm.losses.fitnet import FitNetLoss
from dskd_mm.losses.kd import KDLoss
from dskd_mm.losses.lsh import LSHDistillLoss
from dskd_mm.losses.mgd import MGDLoss
from dskd_mm.losses.pkd import PKDLoss
from dskd_mm.losses.share import GradientShare

__all__ = [
    'ATLoss',
    'AlignedFeatureLoss',
    'BoxLoss',
    'CWDLoss',
    'DISTLoss',
    'DKDLoss',
    'DistillLoss',
    'FeatureLoss',
    'FitNetLoss',
    'GradientShare',
    'KDLoss',
    'LSHDistillLoss',
    'LogitLoss',
    'MGDLoss',
    'PKDLoss',
    'build_loss',
    'build_losses',
]
