"""What the examples share: scikit-learn's handwritten digits, which need no download, and how long to train."""

import argparse

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

SIZE = 16
"""Height and width that the scans of 8x8 pixels are enlarged to."""


def load() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return images (N, 3, 16, 16) and labels (N, ): the first half to train, the second, of other writers, to test."""
    digits = load_digits()
    images = torch.from_numpy(digits.images).float()[:, None] / 8 - 1
    images = F.interpolate(images, (SIZE, SIZE), mode='bicubic').repeat(1, 3, 1, 1)
    labels = torch.from_numpy(digits.target)
    half = len(labels) // 2
    return (images[:half], labels[:half]), (images[half:], labels[half:])


@torch.no_grad()
def accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return how many percent of images a network names right."""
    network.eval()
    return 100 * float((network(images).argmax(dim=1) == labels).float().mean())


def parse_args(about: str | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument('--epochs', type=int, default=12, help='of each training; default: 12')
    parser.add_argument('--method', default='dskd', help='dskd, or a name in configs/methods; default: dskd')
    parser.add_argument('--seed', type=int, default=0, help='of the students and of the order of images; default: 0')
    return parser.parse_args()
