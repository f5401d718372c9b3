"""Distillation in a training loop of plain PyTorch, without configs: :func:`distil`."""

from dskd_mm.pytorch.distiller import NetworkDistiller, distil
from dskd_mm.pytorch.network import NetworkClassifier, NetworkSite, NetworkTeacher

__all__ = ['NetworkClassifier', 'NetworkDistiller', 'NetworkSite', 'NetworkTeacher', 'distil']
