"""Whole runs of detectors and segmenters in small: images on disk, and the hosts' configs with toy models on them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from mmengine.config import Config

from dskd_mm.testing import save_random_model
from dskd_mm.utils.config import load_config, model_config
from support.dense import DENSE_CLASSES, DENSE_SIZE, DETECTORS, detector_config, segmentor_config

SCENE_CLASSES = ('disc', 'box', 'bar')
"""Classes of the objects in scenes; as label maps, the first one is the background instead."""

EXISTING = 'my_existing_config.py'
"""Name of the plain config in :func:`write_distiller_files`."""

# What turns any config into that of a distiller.
DISTILLER = """
_base_ = '{existing}'
custom_imports = dict(imports=['dskd_mm'])
model = dict(
    _delete_=True,
    type='dskd_mm.DSKDDistiller',
    student=_base_.model,
    teacher=dict(config='{folder}/teacher.py', checkpoint='{folder}/teacher.pth'),
)
custom_hooks = [dict(type='dskd_mm.StudentExportHook')]  # for the hosts' own scripts
"""


def write_scenes(
    folder: Path, classes: Sequence[str] = SCENE_CLASSES, num_train: int = 5, num_val: int = 2, seed: int = 0
) -> Path:
    """Write images with a few bright blocks each, in COCO's own layout, and label maps beside.

    ::

        folder/train2017/000000000001.png                   images of DENSE_SIZE, objects on noise
        folder/masks/train2017/000000000001.png             label maps: 0 is background, then the classes but the first
        folder/annotations/instances_train2017.json         boxes and polygons; category 10 (k + 1) is class k
        (the same with val2017)

    The first training image has no object.

    Args:
        folder (Path): Where to.
        classes (Sequence[str]): Names of all classes; objects are of the first three. Defaults to :data:`SCENE_CLASSES`.
        num_train (int): Number of training images. Defaults to 5.
        num_val (int): Number of validation images. Defaults to 2.
        seed (int): Seed of everything. Defaults to 0.

    Returns:
        Path: The folder.
    """
    generator = np.random.default_rng(seed)
    categories = [dict(id=10 * (k + 1), name=name) for k, name in enumerate(classes)]
    for part, count in (('train2017', num_train), ('val2017', num_val)):
        content: dict[str, list] = dict(images=[], annotations=[], categories=categories)
        for kind in (part, f'masks/{part}', 'annotations'):
            (folder / kind).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            name, (height, width) = f'{index + 1:012d}.png', DENSE_SIZE
            image = generator.integers(0, 120, (height, width, 3), dtype=np.uint8)
            mask = np.zeros(DENSE_SIZE, np.uint8)
            for _ in range(0 if part == 'train2017' and not index else generator.integers(1, 4)):
                w, h = generator.integers(16, 40, 2).tolist()
                x, y, k = (int(generator.integers(limit)) for limit in (width - w, height - h, 3))
                image[y : y + h, x : x + w] = 0
                image[y : y + h, x : x + w, k] = 255
                mask[y : y + h, x : x + w] = k
                corners = [x, y, x + w, y, x + w, y + h, x, y + h]
                place = dict(image_id=index + 1, bbox=[x, y, w, h], area=w * h, segmentation=[corners], iscrowd=0)
                number = len(content['annotations']) + 1
                content['annotations'].append(dict(id=number, category_id=10 * (k + 1), **place))
            content['images'].append(dict(id=index + 1, file_name=name, width=width, height=height))
            for path, picture in ((folder / part / name, image), (folder / 'masks' / part / name, mask)):
                if not cv2.imwrite(str(path), picture):
                    raise OSError(f'Cannot write {path}.')
        (folder / 'annotations' / f'instances_{part}.json').write_text(json.dumps(content), encoding='utf-8')
    return folder


def detector_run_config(kind: str, data_root: Path, **kwargs: Any) -> Config:
    """The whole config that mmdet ships for a detector, shrunk to a run of two epochs on :func:`write_scenes`.

    Args:
        kind (str): One of :data:`~support.dense.DETECTORS`.
        data_root (Path): The scenes.
        **kwargs: Other arguments of :func:`~support.dense.detector_config`.

    Returns:
        Config: The config of the plain detector; ``dump`` writes it for the command-line tools.
    """
    cfg = load_config(f'mmdet::{DETECTORS[kind]}')
    cfg.model = detector_config(kind, **kwargs)
    cfg.model.pop('_scope_')  # that of the whole config
    # Untrained detectors are sure of nothing.
    test_cfg = cfg.model.test_cfg.get('rcnn', cfg.model.test_cfg)
    test_cfg.update(score_thr=0.0, max_per_img=5)
    for part in ('train', 'val', 'test'):
        loader = cfg[f'{part}_dataloader']
        loader.update(num_workers=0, persistent_workers=False)
        loader.dataset.update(data_root=f'{data_root}/', metainfo=dict(classes=SCENE_CLASSES))
        _set_steps(loader.dataset.pipeline, 'Resize', scale=DENSE_SIZE[::-1])
        if part != 'train':
            cfg[f'{part}_evaluator'].ann_file = f'{data_root}/annotations/instances_val2017.json'
    cfg.train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=2, val_interval=1)
    cfg.default_hooks.logger.interval = 1
    cfg.randomness = dict(seed=0)
    return Config(cfg.to_dict(), format_python_code=False)


def segmentor_run_config(kind: str, data_root: Path, **kwargs: Any) -> Config:
    """The whole config that mmseg ships for FCN on Cityscapes with a toy segmenter, shrunk to two iterations on scenes.

    Args:
        kind (str): One of :data:`~support.dense.SEGMENTORS`.
        data_root (Path): What :func:`write_scenes` wrote.
        **kwargs: Other arguments of :func:`~support.dense.segmentor_config`.

    Returns:
        Config: The config of the plain segmenter; ``dump`` writes it for the command-line tools.
    """
    cfg = load_config('mmseg::fcn/fcn_r50-d8_4xb2-80k_cityscapes-512x1024.py')
    cfg.model = segmentor_config(kind, **kwargs)
    cfg.model.pop('_scope_')
    cfg.data_preprocessor = cfg.model.data_preprocessor  # mmseg's configs have it twice
    colours = [[k * 80] * 3 for k in range(DENSE_CLASSES)]
    for part in ('train', 'val', 'test'):
        loader = cfg[f'{part}_dataloader']
        loader.update(num_workers=0, persistent_workers=False)
        loader.dataset.update(
            type='BaseSegDataset',
            data_root=str(data_root),
            metainfo=dict(classes=('background', *SCENE_CLASSES[1:]), palette=colours),
            img_suffix='.png',
            seg_map_suffix='.png',
        )
        folder = 'train2017' if part == 'train' else 'val2017'
        loader.dataset.data_prefix = dict(img_path=folder, seg_map_path=f'masks/{folder}')
        for step in ('Resize', 'RandomResize'):
            _set_steps(loader.dataset.pipeline, step, scale=DENSE_SIZE[::-1])
        _set_steps(loader.dataset.pipeline, 'RandomCrop', crop_size=DENSE_SIZE)
    cfg.test_pipeline = cfg.test_dataloader.dataset.pipeline  # which mmseg's inference reads
    sizes, *others = cfg.tta_pipeline[1].transforms
    cfg.tta_pipeline[1].transforms = [sizes[2:3], *others]
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=2, val_interval=2)
    cfg.default_hooks.logger.interval = 1
    cfg.default_hooks.checkpoint.interval = 2
    cfg.randomness = dict(seed=0)
    return Config(cfg.to_dict(), format_python_code=False)


def write_distiller_files(folder: Path, student: Config, teacher: Config, wide: str) -> Path:
    """Write what a user has who distils a model for the first time.

    Args:
        folder (Path): Where to: :data:`EXISTING`, the plain config as it was; teacher.py and teacher.pth, with random weights;
            and distiller.py, which inherits the first and adds the three lines of a model.
        student (Config): The whole plain config.
        teacher (Config): That of the teacher.
        wide (str): See :func:`~dskd_mm.testing.toy.save_random_model`.

    Returns:
        Path: The path of distiller.py.
    """
    student.dump(str(folder / EXISTING))
    teacher.dump(str(folder / 'teacher.py'))
    save_random_model(model_config(teacher), str(folder / 'teacher.pth'), wide)
    path = folder / 'distiller.py'
    path.write_text(DISTILLER.format(existing=EXISTING, folder=folder), encoding='utf-8')
    return path


def _set_steps(pipeline: list, kind: str, **settings: Any) -> None:
    """Override arguments of all steps of one type in a pipeline."""
    for step in pipeline:
        if step.type == kind:
            step.update(settings)
