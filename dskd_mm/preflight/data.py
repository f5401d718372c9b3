"""Are the data there, and do their classes fit the model?"""

import copy
import inspect
import io
import itertools
import math
import os.path as osp
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import redirect_stdout
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.fileio import list_from_file
from mmengine.registry import DATASETS
from torch import Tensor

from dskd_mm.distillers.base import Distiller
from dskd_mm.preflight.report import Report
from dskd_mm.utils.config import datasets, is_dataset_wrapper, is_distiller_config, nodes, num_classes, type_name

LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
MAX_ITEMS = 20000
"""Of how many items of a data set the files are looked at; of larger ones as many, evenly spread."""


def check_data(report: Report) -> None:
    """Check that paths exist and classes are those of the model; thoroughly: files and annotations, too."""
    cfg = report.cfg
    missing: dict[str, list[str]] = {}
    read: list[ConfigDict] = []  # validation and test parts are often one
    is_here = True
    model = cfg.get('model') or {}
    count = num_classes(model['student'] if is_distiller_config(cfg) else model)
    check_warmup(report, (cfg.get('train_cfg') or {}).get('max_iters'))
    for loader in LOADERS if report.thorough else LOADERS[:2]:
        for name, dataset in datasets(cfg.get(loader), loader):
            before = len(report.faults)
            is_there = check_paths(report, name, dataset, missing)
            check_classes(report, name, dataset_classes(dataset), count)
            if report.thorough and is_there and dataset not in read and len(report.faults) == before:
                # pycocotools prints what it does.
                with report.faults_in(name), redirect_stdout(io.StringIO()):
                    check_items(report, name, dataset, count)
            read.append(dataset)
            is_here &= is_there
    wrapper = (cfg.get(LOADERS[0]) or {}).get('dataset')
    if report.thorough and is_here and not report.faults and is_dataset_wrapper(wrapper):
        with report.faults_in(f'{LOADERS[0]}.dataset'), redirect_stdout(io.StringIO()):
            check_wrapper(report, wrapper)
    for part in ('val', 'test') if report.thorough else ('val',):
        evaluators = cfg.get(f'{part}_evaluator') or []
        is_list = isinstance(evaluators, list)
        for i, evaluator in enumerate(evaluators if is_list else [evaluators]):
            path = evaluator.get('ann_file')
            if isinstance(path, str) and path and not is_remote(path) and not osp.exists(path):
                miss(missing, f'{part}_evaluator.{i}.ann_file' if is_list else f'{part}_evaluator.ann_file', path)
    report_missing(report, missing)


def check_paths(report: Report, name: str, dataset: ConfigDict, missing: dict[str, list[str]]) -> bool:
    """Return whether all that a data set reads is on this machine, and add what is not to ``missing``."""
    is_there = True
    backend = dataset.get('backend_args') or dataset.get('file_client_args') or {}
    for setting, path in dataset_paths(dataset):
        if is_remote(path) or backend.get('backend', 'local') != 'local':
            report.note(f'{name}.{setting}', f'{path} is not on this machine: not looked at')
            is_there = False
        elif not osp.exists(path):
            is_there = False
            if downloads(dataset):
                report.note(f'{name}.{setting}', f'{path} is not there yet: the data set downloads itself')
            else:
                miss(missing, f'{name}.{setting}', path)
            if setting == 'data_root':
                break  # all else lies in it
    return is_there


def miss(missing: dict[str, list[str]], setting: str, path: str) -> None:
    """Add a path that is not there by its setting, to those that are lost with the same folder if there are any."""
    for known, settings in missing.items():
        if path == known or path.startswith(known.rstrip('/') + '/'):
            settings.append(setting)
            return
    missing[path] = [setting]


def report_missing(report: Report, missing: Mapping[str, Sequence[str]]) -> None:
    """Tell each path that is not there once, with all settings to override."""
    where = ''
    if 'DSKD_DATA_ROOT' in (report.cfg.text or ''):
        where = 'set the environment variable DSKD_DATA_ROOT to the folder that holds the data sets, or '
    for path, settings in missing.items():
        keys = [re.sub(r'\.data_prefix(\..*)?$', '.data_root', setting) for setting in settings]
        options = ' '.join(f'{key}=...' for key in dict.fromkeys(keys))
        report.fault(
            settings[0],
            f'Expected data at {osp.abspath(path)!r} ({path!r}), but there is none: get the data set, correct the path, {where}'
            f'override it by --cfg-options {options}',
        )


def check_classes(report: Report, name: str, classes: int | None, count: int | None) -> None:
    """Check that the model knows all classes of a data set."""
    if classes is None or count is None:
        return
    if classes > count:
        report.fault(
            f'{name} classes',
            f'Expected at most the {count} classes that the model knows (num_classes of its head), but the data set has '
            f'{classes}: correct num_classes, or choose classes by metainfo=dict(classes=...).',
        )
    elif classes < count:
        report.note(f'{name} classes', f'{classes}, of {count} that the model knows')
    elif name.startswith(LOADERS[0]):
        report.note('classes', f'{count}, in the data set and in the model')


def check_items(report: Report, name: str, dataset: ConfigDict, count: int | None) -> None:
    """Build a data set, and look at its items and at some samples."""
    ann_file = dict(dataset_paths(dataset)).get('ann_file')
    is_empty = ann_file is not None and osp.isfile(ann_file) and not osp.getsize(ann_file)
    built = None if is_empty else DATASETS.build(copy.deepcopy(dataset))
    length = 0 if built is None else len(built)
    if built is None or not length:
        where = ann_file or dataset.get('data_root') or dataset.get('type')
        report.fault(name, f'Expected images, but the data set {where!r} has none.')
        return
    told = (getattr(built, 'metainfo', None) or {}).get('classes')
    if told is not None:
        report.classes[name] = list(told)
    if dataset_classes(dataset) is None and told is not None:
        check_classes(report, name, len(told), count)
    index = spread(length, MAX_ITEMS)
    infos = [built.get_data_info(i) for i in index] if hasattr(built, 'get_data_info') else []
    for problem in item_problems(infos, count):
        report.fault(name, problem)
    text = f'{length} images'
    if len(index) < length:
        text += f', the files of {len(index)} looked at'
    empty = sum('instances' in info and not info['instances'] for info in infos)
    if empty == len(infos) and empty:
        report.fault(name, f'Expected objects, but none of {empty} images has any: do the names of classes match?')
    elif empty:
        text += f', {100 * empty / len(infos):.0f}% without an object'
    report.note(name, text)
    if name.startswith(LOADERS[0]):
        for i in spread(length, 8):
            check_sample(report, name, built[i])
    if name == f'{LOADERS[0]}.dataset':  # not a part of it
        check_epoch(report, length)


def check_wrapper(report: Report, dataset: ConfigDict) -> None:
    """Build the wrapper of training data sets: it counts otherwise, and has a pipeline of its own."""
    built = DATASETS.build(copy.deepcopy(dataset))
    name = f'{LOADERS[0]}.dataset'
    report.note(name, f'{len(built)} images in all')
    for i in spread(len(built), 8):
        check_sample(report, name, built[i])
    check_epoch(report, len(built))


def check_epoch(report: Report, length: int) -> None:
    """Look at what follows from the number of images of an epoch: its last batch, and the share of the warm-up."""
    loader = report.cfg[LOADERS[0]]
    batch, epochs = loader.get('batch_size') or 1, (report.cfg.get('train_cfg') or {}).get('max_epochs')
    check_warmup(report, math.ceil(length / batch) * (epochs or 0))
    is_plain = not (loader.get('drop_last') or loader.get('batch_sampler'))
    is_plain = is_plain and type_name(loader.get('sampler') or {}) == 'DefaultSampler'
    report.ends_in_one_image = is_plain and length % batch == 1 % batch


def check_sample(report: Report, name: str, item: Any) -> None:
    """Look at one sample as training will see it."""
    if not isinstance(item, Mapping) or not isinstance(item.get('inputs'), Tensor):
        return
    shape = item['inputs'].shape
    if not item['inputs'].numel():
        report.fault(name, f'Expected images, but the pipeline makes one of the shape {tuple(shape)}.')
    size = (int(shape[-2]), int(shape[-1]))
    report.image_size = max(report.image_size or size, size, key=math.prod)
    sample = item.get('data_samples')
    if isinstance(report.model, Distiller) and sample is not None:
        with report.faults_in(f'{name} annotations'):
            report.model.site.check([sample], report.model.student_spec)


def check_warmup(report: Report, iterations: int | None) -> None:
    """Tell of a training that is hardly longer than the time over which the losses of the distillation grow."""
    problem = report.model.options.warmup_problem(iterations) if isinstance(report.model, Distiller) else ''
    if problem:
        report.warn('warmup', f'{problem} (counted for one device)')


def dataset_paths(dataset: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the paths in a data set's config by the setting, joined as mmengine's BaseDataset joins them."""
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
    """Return whether a path is no file of this machine, but an address."""
    return '://' in path or bool(re.match(r'\w+:s3:', path))


def is_downloaded(address: str) -> bool:
    """Return whether a checkpoint lies where torch keeps what it downloads."""
    return osp.isfile(osp.join(torch.hub.get_dir(), 'checkpoints', osp.basename(address.partition('?')[0])))


def dataset_class(dataset: Mapping[str, Any]) -> Any:
    """Return the class of a data set, None if it is not known."""
    kind = dataset.get('type')
    if not isinstance(kind, str):
        return kind
    with DATASETS.switch_scope_and_registry(dataset.get('_scope_')) as registry:
        return registry.get(kind)


def downloads(dataset: Mapping[str, Any]) -> bool:
    """Return whether a data set fetches what is not there."""
    if 'download' in dataset:
        return bool(dataset['download'])
    cls = dataset_class(dataset)
    found = [inspect.signature(base.__init__).parameters.get('download') for base in getattr(cls, '__mro__', ())]
    return any(parameter is not None and parameter.default is True for parameter in found)


def dataset_classes(dataset: Mapping[str, Any]) -> int | None:
    """Return how many classes a data set has by its config or its class, None if that is not told."""
    names = class_names(dataset)
    return None if names is None else len(names)


def class_names(dataset: Mapping[str, Any]) -> list[str] | None:
    """Return the names of a data set's classes by its config or its class, None if they are not told."""
    # mmpretrain's data sets have an argument of their own; metainfo goes before it.
    given = (dataset.get('metainfo') or {}).get('classes', dataset.get('classes'))
    if isinstance(given, str):  # a file with a name in each line
        return list_from_file(given) if osp.isfile(given) else None
    if given is None:
        given = (getattr(dataset_class(dataset), 'METAINFO', None) or {}).get('classes')
    return list(given) if isinstance(given, (list, tuple)) else None


def item_problems(infos: Sequence[Mapping[str, Any]], count: int | None) -> Iterator[str]:
    """Yield what is wrong with the items of a data set: files missing or empty, labels that the model does not know."""
    missing, empty, labels = [], [], set()
    for info in infos:
        for path in (info.get('img_path'), info.get('seg_map_path')):
            if isinstance(path, str) and not is_remote(path):
                if not osp.exists(path):
                    missing.append(path)
                elif not osp.getsize(path):
                    empty.append(path)
        given = info.get('gt_label')
        # Ignored ones are set aside by the pipeline, whatever they are called.
        taken = [instance for instance in info.get('instances') or [] if not instance.get('ignore_flag')]
        found = [instance.get('bbox_label') for instance in taken]
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
    """Return the indices of at most ``count`` of ``length`` items, evenly spread."""
    return sorted({i * length // min(count, length) for i in range(min(count, length))})


def normalizing_steps(cfg: Config) -> list[dict[str, Any]]:
    """Return the steps of the training pipeline that normalise images, each by what it is given but its type."""
    found = list(nodes((cfg.get(LOADERS[0]) or {}).get('dataset')))  # pipelines of wrappers included
    found = [node for node in found if isinstance(node.get('type'), (str, type)) and type_name(node).endswith('Normalize')]
    return [{key: value for key, value in node.items() if key != 'type'} for node in found]


def pipeline_size(cfg: Config) -> tuple[int, int] | None:
    """Return height and width that the training pipeline makes, by its last step that names one; None if none does."""
    found, outer = None, (cfg.get(LOADERS[0]) or {}).get('dataset') or {}
    first = (dataset for _, dataset in itertools.islice(datasets(cfg.get(LOADERS[0]), LOADERS[0]), 1))
    for dataset in (*first, outer):  # a wrapper's pipeline comes last
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
