"""The data sets that no host reads, on generated files and, where they are, on the real ones."""

import gzip
import os
from pathlib import Path

import cv2
import numpy as np
import pytest

from dskd_mm.datasets import CIFAR100Subset, GzipFashionMNIST

DATA_ROOT = Path(os.environ.get('DSKD_DATA_ROOT', '../shared/data'))


def needs(name: str) -> pytest.MarkDecorator:
    folder = DATA_ROOT / name
    return pytest.mark.skipif(not folder.is_dir(), reason=f'no {name} at {folder}; set DSKD_DATA_ROOT to test on it')


@pytest.fixture
def mosaics(tmp_path: Path) -> tuple[Path, dict[str, np.ndarray]]:
    """Five mosaics of two random tiles a class."""
    generator = np.random.default_rng(0)
    (tmp_path / 'classes.txt').write_text(''.join(f'{i}\tclass{i}\t0\tsuper\n' for i in range(100)))
    tiles = {}
    for name in ['train_0', 'train_1', 'train_2', 'train_3', 'test']:
        tiles[name] = generator.integers(0, 256, (100, 2, 32, 32, 3), dtype=np.uint8)
        mosaic = tiles[name].transpose(0, 2, 1, 3, 4).reshape(3200, 64, 3)
        cv2.imwrite(str(tmp_path / f'{name}.webp'), mosaic[..., ::-1], [cv2.IMWRITE_WEBP_QUALITY, 101])
    return tmp_path, tiles


def test_mosaics_are_cut_into_rgb_tiles_and_labelled_by_row(mosaics):
    folder, tiles = mosaics
    dataset = CIFAR100Subset(data_root=str(folder), split='train', blocks=(1, 3))
    assert len(dataset) == 400
    for index, (block, label, column) in {0: ('train_1', 0, 0), 7: ('train_1', 3, 1), 399: ('train_3', 99, 1)}.items():
        item = dataset[index]
        assert item['gt_label'] == label
        np.testing.assert_array_equal(item['img'], tiles[block][label, column])
    assert dataset.metainfo['classes'][42] == 'class42'
    assert len(CIFAR100Subset(data_root=str(folder), split='test')) == 200


@pytest.mark.parametrize(
    'build, error, words',
    [
        (lambda d: CIFAR100Subset(data_root=d, split='val'), ValueError, "'val'"),
        (lambda d: CIFAR100Subset(data_root=d), FileNotFoundError, 'DSKD_DATA_ROOT'),
        (lambda d: GzipFashionMNIST(data_root=d, split='val'), ValueError, "'val'"),
        (lambda d: GzipFashionMNIST(data_root=d), FileNotFoundError, 'DSKD_DATA_ROOT'),
    ],
)
def test_mistakes_are_named(tmp_path, build, error, words):
    with pytest.raises(error, match=words):
        build(str(tmp_path))


def write_idx(path: Path, array: np.ndarray) -> None:
    header = bytes([0, 0, 8, array.ndim]) + b''.join(size.to_bytes(4, 'big') for size in array.shape)
    with gzip.open(path, 'wb') as file:
        file.write(header + array.tobytes())


def test_idx_files_are_read_without_writing_beside_them(tmp_path):
    generator = np.random.default_rng(0)
    images = {part: generator.integers(0, 256, (n, 28, 28), dtype=np.uint8) for part, n in (('train', 6), ('t10k', 3))}
    for part, array in images.items():
        write_idx(tmp_path / f'{part}-images-idx3-ubyte.gz', array)
        write_idx(tmp_path / f'{part}-labels-idx1-ubyte.gz', np.arange(len(array), dtype=np.uint8))
    before = sorted(tmp_path.iterdir())
    for split, part in (('train', 'train'), ('test', 't10k')):
        dataset = GzipFashionMNIST(data_root=str(tmp_path), split=split)
        assert [item['gt_label'] for item in dataset] == list(range(len(images[part])))
        np.testing.assert_array_equal(dataset[2]['img'][..., 0], images[part][2])
    assert len(GzipFashionMNIST(data_root=str(tmp_path), split='train', indices=-2)) == 2
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.data
@needs('cifar100_subset')
def test_real_cifar_subset_is_complete_and_balanced():
    root = str(DATA_ROOT / 'cifar100_subset')
    for split, per_class in (('train', 200), ('test', 100)):
        dataset = CIFAR100Subset(data_root=root, split=split)
        labels = np.array([dataset.get_data_info(i)['gt_label'] for i in range(len(dataset))])
        np.testing.assert_array_equal(np.bincount(labels), np.full(100, per_class))
    assert dataset.metainfo['classes'][0] == 'apple'


@pytest.mark.data
@needs('fashion_mnist')
def test_real_fashion_mnist_is_complete_and_balanced():
    root = str(DATA_ROOT / 'fashion_mnist')
    for split, per_class in (('train', 6000), ('test', 1000)):
        dataset = GzipFashionMNIST(data_root=root, split=split)
        labels = np.array([dataset.get_data_info(i)['gt_label'] for i in range(len(dataset))])
        np.testing.assert_array_equal(np.bincount(labels), np.full(10, per_class))
