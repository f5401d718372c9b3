"""What a config says of its data sets, and what is wrong with their items."""

import inspect
import itertools
import math
import os.path as osp
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import DATASETS

from dskd_mm.utils.config import is_distiller_config, nodes

LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')


def datasets(loader: Any, name: str) -> Iterator[tuple[str, ConfigDict]]:
    """The data sets that a loader, or a wrapper of data sets, reads, each with its key in the config."""
    for key in ('dataset', 'datasets'):
        inner = (loader or {}).get(key)
        for i, dataset in enumerate(inner if isinstance(inner, (list, tuple)) else [inner]):
            path = f'{name}.{key}' + (f'.{i}' if key == 'datasets' else '')
            if isinstance(dataset, dict) and ('dataset' in dataset or 'datasets' in dataset):
                yield from datasets(dataset, path)
            elif isinstance(dataset, dict):
                yield path, dataset


def dataset_paths(dataset: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The paths in a data set's config by the setting, joined as mmengine's BaseDataset joins them."""
    root = dataset.get('data_root') or ''
    if not isinstance(root, str):
        return
    if root:
        yield 'data_root', root
    prefix = dataset.get('data_prefix') or {}
    given = {'ann_file': dataset.get('ann_file')}
    given |= {f'data_prefix.{k}': v for k, v in prefix.items()} if isinstance(prefix, Mapping) else {'data_prefix': prefix}
    for setting, path in given.items():
        if isinstance(path, str) and path:
            yield setting, path if osp.isabs(path) or is_remote(path) or not root else osp.join(root, path)


def is_remote(path: str) -> bool:
    """Whether a path is no file of this machine, but an address."""
    return '://' in path or bool(re.match(r'\w+:s3:', path))


def is_downloaded(address: str) -> bool:
    """Whether a checkpoint lies where torch keeps what it downloads."""
    return osp.isfile(osp.join(torch.hub.get_dir(), 'checkpoints', osp.basename(address.partition('?')[0])))


def dataset_class(dataset: Mapping[str, Any]) -> Any:
    """The class of a data set, None if it is not known."""
    kind = dataset.get('type')
    if not isinstance(kind, str):
        return kind
    with DATASETS.switch_scope_and_registry(dataset.get('_scope_')) as registry:
        return registry.get(kind)


def downloads(dataset: Mapping[str, Any]) -> bool:
    """Whether a data set fetches what is not there."""
    if 'download' in dataset:
        return bool(dataset['download'])
    cls = dataset_class(dataset)
    found = [inspect.signature(base.__init__).parameters.get('download') for base in getattr(cls, '__mro__', ())]
    return any(parameter is not None and parameter.default is True for parameter in found)


def dataset_classes(dataset: Mapping[str, Any]) -> int | None:
    """How many classes a data set has by its config or its class, None if that is not told."""
    given = (dataset.get('metainfo') or {}).get('classes')
    if given is None:
        given = (getattr(dataset_class(dataset), 'METAINFO', None) or {}).get('classes')
    return len(given) if isinstance(given, (list, tuple)) else None


def num_classes(cfg: Config) -> int | None:
    """How many classes the (student) model of a config knows, None if that is not told."""
    model = cfg.get('model') or {}
    if is_distiller_config(cfg):
        model = model['student']
    for path in ('head', 'bbox_head', 'decode_head', 'roi_head.bbox_head'):
        node: Any = model
        for name in path.split('.'):
            node = (node.get(name) if isinstance(node, dict) else None) or {}
        node = node[-1] if isinstance(node, (list, tuple)) and node else node
        if isinstance(node, dict) and isinstance(node.get('num_classes'), int):
            return node['num_classes']
    return None


def item_problems(infos: Sequence[Mapping[str, Any]], count: int | None) -> Iterator[str]:
    """What is wrong with the items of a data set: files that are missing or empty, labels that the model does not know."""
    missing, empty, labels = [], [], set()
    for info in infos:
        for path in (info.get('img_path'), info.get('seg_map_path')):
            if isinstance(path, str) and not is_remote(path):
                if not osp.exists(path):
                    missing.append(path)
                elif not osp.getsize(path):
                    empty.append(path)
        given = info.get('gt_label')
        found = [instance.get('bbox_label') for instance in info.get('instances') or []]
        found += list(given) if isinstance(given, Iterable) else [given]
        labels |= {int(label) for label in found if label is not None}
    for kind, paths in (('missing', missing), ('empty (0 bytes)', empty)):
        if paths:
            yield f'Expected an image in each file, but {len(paths)} of {len(infos)} are {kind}, such as {paths[0]!r}.'
    wrong = sorted(label for label in labels if count is not None and not 0 <= label < count)
    if wrong:
        yield (
            f'Expected labels from 0 to {(count or 0) - 1}, but there are {wrong[:5]}: correct the annotations, or num_classes '
            'of the model.'
        )


def spread(length: int, count: int) -> list[int]:
    """Indices of at most ``count`` of ``length`` items, evenly spread."""
    return sorted({i * length // min(count, length) for i in range(min(count, length))})


def pipeline_size(cfg: Config) -> tuple[int, int] | None:
    """Height and width that the training pipeline makes, by its last step that names one; None if none does."""
    found = None
    for _, dataset in itertools.islice(datasets(cfg.get(LOADERS[0]), LOADERS[0]), 1):
        for node in nodes(dataset.get('pipeline') or []):
            for key in ('crop_size', 'scale', 'scales', 'size'):
                value = node.get(key)
                if key == 'scales' and isinstance(value, (list, tuple)):
                    value = max((one for one in value if isinstance(one, (list, tuple))), key=math.prod, default=None)
                if isinstance(value, int) and value > 1:
                    found = (value, value)
                elif isinstance(value, (list, tuple)) and len(value) == 2 and all(isinstance(v, int) for v in value):
                    found = (value[0], value[1]) if key == 'crop_size' else (value[1], value[0])
    return found
