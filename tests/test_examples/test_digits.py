"""The data set of single digits."""

import numpy as np
import pytest

pytest.importorskip('sklearn')
pytest.importorskip('mmpretrain')
from examples.digits.dataset import Digits


def test_digits_split_without_overlap():
    train, test = Digits(split='train'), Digits(split='test')
    assert len(train) + len(test) == 1797
    assert train[0]['img'].shape == (16, 16, 1) and train[0]['img'].dtype == np.uint8
    few = Digits(split='train', num_train=50, size=8)
    assert len(few) == 50 and few[0]['img'].shape == (8, 8, 1)
    assert {item['gt_label'] for item in few} == set(range(10))


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="'val'"):
        Digits(split='val')
