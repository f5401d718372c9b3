"""Data sets that no host reads."""

from dskd_mm.datasets.cifar100_subset import CIFAR100Subset
from dskd_mm.datasets.fashion_mnist import GzipFashionMNIST

__all__ = ['CIFAR100Subset', 'GzipFashionMNIST']
