"""Fashion-MNIST, read from its official files as they are."""

import gzip
import os.path as osp
from typing import Any

import numpy as np
from mmengine.dataset import BaseDataset

from dskd_mm.registry import DATASETS


@DATASETS.register_module()
class GzipFashionMNIST(BaseDataset):
    """Fashion-MNIST (Xiao, Rasul & Vollgraf 2017) from the four ``.gz`` files of its release.

    mmpretrain's ``FashionMNIST`` unpacks them beside themselves, which a read-only data folder forbids, and takes the test part
    for ``test_mode=True`` only, whatever ``split`` says. Items are ``dict(img, gt_label)`` with grey images (28, 28, 1), uint8.

    Args:
        data_root (str): The folder of the files.
        split (str): 'train' (60,000 images) or 'test' (10,000). Defaults to 'train'.
        **kwargs: Other arguments of :class:`mmengine.dataset.BaseDataset`, such as ``pipeline`` or ``indices``.

    Raises:
        ValueError: If ``split`` is unknown.
        FileNotFoundError: If a file is missing.
    """

    METAINFO = dict(
        classes=(
            'T-shirt/top',
            'Trouser',
            'Pullover',
            'Dress',
            'Coat',
            'Sandal',
            'Shirt',
            'Sneaker',
            'Bag',
            'Ankle boot',
        )
    )

    def __init__(self, data_root: str, split: str = 'train', **kwargs: Any) -> None:
        if split not in ('train', 'test'):
            raise ValueError(f"split of GzipFashionMNIST must be 'train' or 'test', but got {split!r}.")
        self.split = split
        super().__init__(data_root=data_root, **kwargs)

    def load_data_list(self) -> list[dict[str, Any]]:
        """Read one part into memory."""
        part = 't10k' if self.split == 'test' else 'train'
        images = read_idx(osp.join(self.data_root, f'{part}-images-idx3-ubyte.gz'))
        labels = read_idx(osp.join(self.data_root, f'{part}-labels-idx1-ubyte.gz'))
        return [dict(img=image[..., None], gt_label=int(label)) for image, label in zip(images, labels, strict=True)]


def read_idx(path: str) -> np.ndarray:
    """Read a gzipped IDX file of bytes: two zeros, the type, the number of dimensions, their big-endian sizes, the data."""
    if not osp.isfile(path):
        raise FileNotFoundError(
            f'No Fashion-MNIST file at {path!r}. Set the environment variable DSKD_DATA_ROOT to the folder that holds '
            "'fashion_mnist', or data_root in the config."
        )
    with gzip.open(path) as file:
        content = file.read()
    num_dims = content[3]
    shape = np.frombuffer(content, '>u4', count=num_dims, offset=4)
    return np.frombuffer(content, np.uint8, offset=4 + 4 * num_dims).reshape(shape)
