"""CIFAR-100 stored as lossless WebP mosaics."""

import os.path as osp
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from mmengine.dataset import BaseDataset

from dskd_mm.registry import DATASETS

NUM_CLASSES = 100
TILE = 32


@DATASETS.register_module()
class CIFAR100Subset(BaseDataset):
    """A class-balanced subset of CIFAR-100 (Krizhevsky 2009) in five files.

    ``train_0.webp`` .. ``train_3.webp`` hold 50 training images of each class, ``test.webp`` the complete official test part.
    A mosaic has one row of 32x32 tiles per class. Items are ``dict(img, gt_label)`` with RGB images (32, 32, 3), uint8.

    Args:
        data_root (str): The folder of the mosaics and ``classes.txt``.
        split (str): 'train' or 'test'. Defaults to 'train'.
        blocks (Sequence[int]): Which training files to read, so that one can be held out for validation; every one is class
            balanced. Defaults to (0, 1, 2, 3).
        **kwargs: Other arguments of :class:`mmengine.dataset.BaseDataset`, such as ``pipeline``.

    Raises:
        ValueError: If ``split`` is unknown.
        FileNotFoundError: If a mosaic is missing.
    """

    def __init__(self, data_root: str, split: str = 'train', blocks: Sequence[int] = (0, 1, 2, 3), **kwargs: Any) -> None:
        if split not in ('train', 'test'):
            raise ValueError(f"split of CIFAR100Subset must be 'train' or 'test', but got {split!r}.")
        self.split = split
        self.blocks = tuple(blocks)
        super().__init__(data_root=data_root, **kwargs)

    def load_data_list(self) -> list[dict[str, Any]]:
        """Cut the mosaics into images."""
        names = [f'train_{i}.webp' for i in self.blocks] if self.split == 'train' else ['test.webp']
        items = []
        for name in names:
            images = read_mosaic(osp.join(self.data_root, name))
            labels = np.repeat(np.arange(NUM_CLASSES), len(images) // NUM_CLASSES)
            items += [dict(img=image, gt_label=int(label)) for image, label in zip(images, labels, strict=True)]
        with open(osp.join(self.data_root, 'classes.txt')) as file:
            self._metainfo['classes'] = tuple(line.split()[1] for line in file if line.strip())
        return items


def read_mosaic(path: str) -> np.ndarray:
    """Read one mosaic into images (N, 32, 32, 3), RGB, uint8, ordered by class."""
    mosaic = cv2.imread(path)
    if mosaic is None:
        raise FileNotFoundError(
            f'No CIFAR-100 mosaic at {path!r}. Set the environment variable DSKD_DATA_ROOT to the folder that holds '
            "'cifar100_subset', or data_root in the config."
        )
    columns = mosaic.shape[1] // TILE
    tiles = mosaic[..., ::-1].reshape(NUM_CLASSES, TILE, columns, TILE, 3).transpose(0, 2, 1, 3, 4)
    return np.ascontiguousarray(tiles.reshape(-1, TILE, TILE, 3))
