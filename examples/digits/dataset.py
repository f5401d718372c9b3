"""The handwritten digits that scikit-learn ships: real scans, no download."""

from typing import Any

import cv2
import numpy as np
from mmengine.dataset import BaseDataset
from mmpretrain.registry import DATASETS


@DATASETS.register_module()
class Digits(BaseDataset):
    """1,797 handwritten digits of 8x8 pixels (UCI ML digits, 43 writers), upscaled.

    scikit-learn's order keeps the writers together, so the test part (the last share) holds writers that training has not
    seen. Items are ``dict(img, gt_label)`` with grey images (size, size, 1), uint8.

    Args:
        split (str): 'train' or 'test'. Defaults to 'train'.
        test_share (float): Share of the images in the test part. Defaults to 0.5.
        num_train (int, optional): Keep only the first so many training images. None keeps all. Defaults to None.
        size (int): Height and width after upscaling. Defaults to 16.
        **kwargs: Other arguments of :class:`mmengine.dataset.BaseDataset`, such as ``pipeline``.

    Raises:
        ValueError: If ``split`` is unknown.
    """

    METAINFO = dict(classes=tuple('0123456789'))

    def __init__(
        self, split: str = 'train', test_share: float = 0.5, num_train: int | None = None, size: int = 16, **kwargs: Any
    ) -> None:
        if split not in ('train', 'test'):
            raise ValueError(f"split of Digits must be 'train' or 'test', but got {split!r}.")
        self.split = split
        self.test_share = test_share
        self.num_train = num_train
        self.size = size
        super().__init__(**kwargs)

    def load_data_list(self) -> list[dict[str, Any]]:
        """Upscale the scans of one part."""
        from sklearn.datasets import load_digits

        digits = load_digits()
        border = round(len(digits.target) * (1 - self.test_share))
        part = slice(min(border, self.num_train or border)) if self.split == 'train' else slice(border, None)
        images = (digits.images[part] * (255 / 16)).astype(np.uint8)
        size = (self.size, self.size)
        return [
            dict(img=cv2.resize(image, size, interpolation=cv2.INTER_CUBIC)[..., None], gt_label=int(label))
            for image, label in zip(images, digits.target[part], strict=True)
        ]
