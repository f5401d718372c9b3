"""Distil the models of the hosts' zoos from themselves: there must be nothing to learn.

python benchmarks/model_zoo.py                  # all, to benchmarks/results/model_zoo.jsonl
python benchmarks/model_zoo.py mmdet mmseg/knet  # a host, a folder of its configs, or one; the rows of the others stay

Of the installed hosts' configs those are taken that bring a type of model, backbone, neck or head that none before had.
Weights are random, images are two of 64 x 64, or larger where the plain model asks for it (of classifiers as large as they were
made for), on the CPU. Most ResNets have a quarter of their width, sampling takes one step. Student and teacher are the same
model with the same weights. A row says by which site a step was taken and how far they differ, or why there is none; what a
refusal advises is tried as well. Left out are models that learn from other than labels: trackers, self-supervised and
multi-modal ones, and backbones without a head.
"""

import argparse
import copy
import gc
import importlib
import json
import math
import re
import sys
import tempfile
import warnings
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import torch
from mmengine.config import ConfigDict
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import MODELS, init_default_scope

if not __package__:  # called as a script, which sees its own folder only
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks import mmcv_zoo
from benchmarks.records import origin, records, rewrite
from benchmarks.runner import ROOT
from dskd_mm.sites import SITES_BY_MODEL
from dskd_mm.testing import identity_step, make_identical

RESULTS = ROOT / 'benchmarks' / 'results' / 'model_zoo.jsonl'
HOSTS = ('mmdet', 'mmseg', 'mmpretrain')
SMALL = ('tiny', 'r18', 'nano', 'small', '-b0', 'w18', 'r50', 's50', 'base', '31B')
"""Which config of a folder is taken, by a part of its name: the first that there is, of these the one of the shortest name."""
SIZES = (64, 256, 512)
"""Heights and widths of images, the first that the plain model trains on."""
TOLERANCE = 1e-3
"""What differs by less, relative to the largest value, is equal: heads may resize, round and sum in another order."""
NECK = dict(type='dskd_mm.NeckSite')


def zoo(host: str, folders: Collection[str] = ()) -> Iterator[tuple[str, ConfigDict]]:
    """Yield paths of a host's configs, or of some folders of them, and their models, of those that bring something new."""
    root, seen = Path(importlib.import_module(host).__file__ or '').parent / '.mim' / 'configs', set[tuple[str, str]]()
    paths = [path.relative_to(root) for path in root.glob('*/*.py')]
    paths = [path for path in paths if not path.parts[0].startswith('_')]
    init_default_scope(host)
    for path in sorted(paths, key=lambda path: (path.parts[0], size_rank(path.name), len(path.name), path.name)):
        try:
            model = thinned(mmcv_zoo.configured(host, path.as_posix()).model, host)
        except Exception:  # no model, or it needs a package that is not there
            continue
        new = {(name, part) for name, part in parts_of(model).items() if part} - seen
        if new and learns_from_labels(model, host):
            seen |= new
            if not folders or path.parts[0] in folders:
                yield path.as_posix(), model


def size_rank(name: str) -> int:
    """Return the place of a config's size in :data:`SMALL`."""
    return next((i for i, part in enumerate(SMALL) if part in name), len(SMALL))


def parts_of(model: ConfigDict) -> dict[str, str]:
    """Return the types of a model and of its parts."""
    parts = dict(backbone=part_type(model, 'backbone'), neck=part_type(model, 'neck'), head=head_type(model))
    return dict(type=model.type.rsplit('.', 1)[-1], **parts, roi_head=part_type(model, 'roi_head'))


def learns_from_labels(model: ConfigDict, host: str) -> bool:
    """Return whether a site is known for the type of a model, and it has a head to learn by."""
    cls = MODELS.get(model.type if '.' in model.type else f'{host}.{model.type}')
    names = {f'{base.__module__.split(".")[0]}.{base.__name__}' for base in getattr(cls, '__mro__', ())}
    return bool(names & set(SITES_BY_MODEL)) and not ('head' in model and not model.head)


def part_type(model: ConfigDict, *names: str) -> str:
    """Return the type of a part of a model, of the last in a cascade."""
    part: Any = model
    for name in names:
        part = (part[-1] if isinstance(part, list) else part or {}).get(name)
    part = part[-1] if isinstance(part, list) and part else part
    return str((part or {}).get('type', '')).rsplit('.', 1)[-1]


def head_type(model: ConfigDict) -> str:
    """Return the type of the head that classifies."""
    paths = (('roi_head', 'bbox_head'), ('bbox_head',), ('panoptic_head',), ('mask_head',), ('decode_head',), ('head',))
    return next(filter(None, (part_type(model, *path) for path in paths)), '')


def distil(model: ConfigDict, data: dict[str, Any], site: dict) -> tuple[str, dict[str, float]]:
    """Take a step of a student that is its teacher, and return the site and what differs.

    Raises:
        ArithmeticError: If a loss is not finite.
    """
    torch.manual_seed(0)
    options: dict[str, Any] = dict(sampler=dict(steps=1), prior='teacher')  # which always runs
    with tempfile.TemporaryDirectory() as folder:
        teacher = dict(config=dict(model=model), checkpoint=f'{folder}/teacher.pth')
        config = dict(type='dskd_mm.DSKDDistiller', student=model, teacher=teacher, site=site, **options)
        distiller = MODELS.build(ConfigDict(config))
        torch.save(distiller.student.state_dict(), teacher['checkpoint'])  # it is not read before the first step
        make_identical(distiller)
    batch = distiller.data_preprocessor(data, True)
    found, _, losses = identity_step(distiller, batch)
    total, _ = distiller.parse_losses(losses)
    total.backward()
    if not bool(torch.isfinite(total)):
        raise ArithmeticError(f'the loss is {float(total)}')
    return type(distiller.site).__name__, found


def thinned(model: ConfigDict, host: str) -> ConfigDict:
    """Return a model on a ResNet of a quarter of its width, or a transformer for small images, in place; others as they are."""
    backbone = model.get('backbone') or {}
    if host != 'mmpretrain' and 'img_size' in backbone:
        backbone.img_size = (SIZES[0], SIZES[0])
    fixed = any(word in str(model) for word in ('shared_head', 'kernel_generate_head', 'JPU'))
    fixed |= 'base_channels' in backbone or "'GN'" in str(backbone)
    if fixed or backbone.get('type') not in ('ResNet', 'ResNetV1c'):
        return model
    backbone.base_channels = 16
    if backbone.type == 'ResNetV1c':
        backbone.stem_channels = 16
    neck = model.get('neck')
    neck = neck[0] if isinstance(neck, list) else neck
    if neck and 'in_channels' in neck:
        parts = [neck]
    else:
        heads = [model.get(name) or [] for name in ('decode_head', 'auxiliary_head', 'bbox_head', 'panoptic_head', 'head')]
        parts = [part for head in heads for part in (head if isinstance(head, list) else [head])]
    for part in parts:
        for name in ('in_channels', 'c1_in_channels'):
            if name in part:
                widths = part[name]
                part[name] = widths // 4 if isinstance(widths, int) else type(widths)(width // 4 for width in widths)
    return model


def sizes_for(model: ConfigDict, host: str) -> list[tuple[int, int]]:
    """Return the sizes of images to try, the first of which the plain model trains on is taken."""
    if model.type == 'BaseReID':
        return [(256, 128)]  # its pooling is of that shape
    sizes = (model.backbone.get('img_size', 224), 32) if host == 'mmpretrain' else SIZES
    return [(size, size) if isinstance(size, int) else tuple(size) for size in sizes]


def try_model(host: str, path: str, model: ConfigDict) -> dict[str, Any]:
    """Return the record of a model."""
    model.setdefault('_scope_', host)
    row: dict[str, Any] = dict(host=host, config=path, **parts_of(model), refused='', site='', error='')
    MessageHub.get_current_instance().update_info('epoch', 5)  # TOOD asks for it
    for size in sizes_for(model, host):
        fault = plain_error(model, host, size)
        row.setdefault('plain', fault)
        if not fault:
            row |= dict(size=size, plain='')
            break
    sites: list[dict] = [] if row['plain'] else [{}]
    for site in sites:
        try:
            name, found = distil(model, batch_for(model, host, size), site)
        except Exception as error:  # of whatever kind: it is the row
            text = re.sub(r'\s+', ' ', f'{type(error).__name__}: {error}')
            if not row['refused']:
                sites += [*advised(text), NECK]
            row['refused'] = row['refused'] or text
            row['error'] = text
            continue
        row |= dict(site=name, differences=found, error='')
        break
    return row


def advised(refusal: str) -> list[dict]:
    """Return the site that a refusal names: the first of several layers that classify."""
    found = re.search(r"of them: \['([\w.]+)'.*site=dict\(classifier=", refusal)
    return [dict(classifier=f'head.{found[1]}', teacher_classifier=f'head.{found[1]}')] if found else []


def plain_error(model: ConfigDict, host: str, size: tuple[int, int]) -> str:
    """Return why a model cannot train by itself on images of a size, '' if it can."""
    if host == 'mmseg':
        model.data_preprocessor.size = size
    torch.manual_seed(0)
    try:
        plain = MODELS.build(copy.deepcopy(model))  # some heads write into theirs
        with torch.no_grad():
            losses = plain(**plain.data_preprocessor(batch_for(model, host, size), True), mode='loss')
        total = float(plain.parse_losses(losses)[0])
    except Exception as error:  # of whatever kind: it is the host's
        return re.sub(r'\s+', ' ', f'{type(error).__name__}: {error}')
    return '' if math.isfinite(total) else f'ArithmeticError: the loss is {total}'


def batch_for(model: ConfigDict, host: str, size: tuple[int, int]) -> dict[str, Any]:
    """Return two images with all annotations that a model may ask for, before its preprocessor."""
    masks = re.search('mask_head|Mask2Former|MaskFormer|RTMDetIns', str(model)) is not None
    channels = len(model.data_preprocessor.get('mean') or (0, 0, 0))
    classes = min([10, *map(int, re.findall(r"'num_classes': (\d+)", str(model)))])
    return mmcv_zoo.batch('mmpretrain' if model.type == 'BaseReID' else host, masks, (channels, *size), classes)


def is_exact(row: dict[str, Any]) -> bool:
    """Return whether an identical student had nothing to learn."""
    return bool(row['site']) and all(value < TOLERANCE for value in row['differences'].values())


def chosen_models(chosen: list[str]) -> Iterator[tuple[str, str, ConfigDict]]:
    """Yield host, path and model of the chosen hosts, folders or configs, all for none."""
    for host in HOSTS:
        names = [name.partition('/') for name in chosen if name.split('/')[0] == host]
        if chosen and not names:
            continue
        importlib.import_module(f'{host}.utils').register_all_modules(init_default_scope=False)
        init_default_scope(host)
        for path in [path for _, _, path in names if path.endswith('.py')]:
            yield host, path, thinned(mmcv_zoo.configured(host, path).model, host)
        folders = [folder for _, _, folder in names if not folder.endswith('.py')]
        if names and not folders:
            continue
        for path, model in zoo(host, () if '' in folders else folders):
            yield host, path, model


def main() -> None:
    """Write a row for each chosen model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('models', nargs='*', help='hosts, host/folder or host/folder/config.py; all by default')
    warnings.filterwarnings('ignore')
    MMLogger.get_instance('mmengine', log_level='ERROR')
    found = {(row['host'], row['config']): row for row in records(RESULTS)}
    for host, path, model in chosen_models(parser.parse_args().models):
        row = try_model(host, path, model)
        print(json.dumps(row), flush=True)
        found[host, path] = row | origin()
        order = sorted(found, key=lambda key: (HOSTS.index(key[0]), key[1]))
        rewrite(RESULTS, [found[key] for key in order])
        gc.collect()


if __name__ == '__main__':
    main()
