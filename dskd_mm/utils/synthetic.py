"""Make random batches in a host's own format, for what needs a step but no data: pre-flight checks, costs, tests."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from mmengine.config import Config

from dskd_mm.utils.config import nodes, num_classes

Size = tuple[int, int]


def synthetic_batch(
    cfg: Config, images: int = 2, size: Size = (96, 128), seed: int = 0, scope: str | None = None
) -> dict[str, list]:
    """Return random images with random annotations, as a data loader yields them for a config.

    Args:
        cfg (Config): Config of a distiller or of a plain model.
        images (int): Number of images. Defaults to 2.
        size (tuple[int, int]): Height and width of the images. Defaults to (96, 128).
        seed (int): Seed of everything. Defaults to 0.
        scope (str, optional): The host whose format it is. Defaults to None: ``default_scope`` of the config.

    Returns:
        dict[str, list]: 'inputs', tensors (C, H, W) of uint8, and 'data_samples'. An image of a detector has 1 to 7 objects
        with boxes and masks, the top rows of a label map are ignored.

    Raises:
        ValueError: If the config is of no host that is known, or does not tell its number of classes.
    """
    scope = scope or cfg.get('default_scope')
    if scope not in SAMPLES:
        raise ValueError(f'A synthetic batch is known for default_scope {", ".join(SAMPLES)}, but the config has {scope!r}.')
    model = cfg.model.get('student', cfg.model)
    model = model.get('model', model)
    classes = num_classes(model) or (model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}).get('num_classes')
    if classes is None:
        raise ValueError(f'Expected num_classes in a head of the model, but its settings {sorted(model)} tell none.')
    rng = np.random.default_rng(seed)
    backbone = model.get('backbone') or model  # networks of timm have none apart
    channels = backbone.get('in_channels') or backbone.get('in_chans', 3)
    inputs = [torch.from_numpy(rng.integers(256, size=(channels, *size), dtype=np.uint8)) for _ in range(images)]
    return dict(inputs=inputs, data_samples=[SAMPLES[scope](model, classes, size, rng) for _ in inputs])


def image_sample(model: Any, classes: int, size: Size, rng: np.random.Generator) -> Any:
    """Return a label of mmpretrain."""
    from mmpretrain.structures import DataSample

    return DataSample().set_gt_label(int(rng.integers(classes)))


def scene_sample(model: Any, classes: int, size: Size, rng: np.random.Generator) -> Any:
    """Return boxes of mmdet, with masks where the model speaks of them: RTMDet's assigner fails on what it does not need."""
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    height, width = size
    count = int(rng.integers(1, 8))
    corner = rng.uniform(0, 0.6, (count, 2)) * (width, height)
    extent = rng.uniform(0.1, 0.4, (count, 2)) * (width, height)
    boxes = np.concatenate([corner, corner + extent], axis=1).astype(np.float32)
    instances = InstanceData(bboxes=torch.from_numpy(boxes), labels=torch.from_numpy(rng.integers(classes, size=count)))
    if any('mask' in key for node in nodes(model) for key in node):
        masks = np.zeros((count, height, width), np.uint8)
        for mask, (left, top, right, bottom) in zip(masks, boxes.astype(int), strict=True):
            mask[top:bottom, left:right] = 1
        instances.masks = BitmapMasks(masks, height, width)
    shape = dict(img_shape=size, ori_shape=size, pad_shape=size, batch_input_shape=size, scale_factor=(1.0, 1.0))
    sample = DetDataSample(gt_instances=instances, metainfo=dict(img_id=0, img_path='synthetic', flip=False, **shape))
    sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
    return sample


def map_sample(model: Any, classes: int, size: Size, rng: np.random.Generator) -> Any:
    """Return a label map of mmseg, blocks of classes, of which the top rows are ignored, and the edges of the blocks."""
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    head = model.decode_head[-1] if isinstance(model.decode_head, list) else model.decode_head
    block = 16
    coarse = rng.integers(classes, size=[-(-side // block) for side in size])
    labels = np.kron(coarse, np.ones((block, block), np.int64))[: size[0], : size[1]]
    edges = np.zeros_like(labels)
    edges[::block], edges[:, ::block] = 1, 1
    labels[: size[0] // 8] = head.get('ignore_index', 255)
    return SegDataSample(
        gt_sem_seg=PixelData(data=torch.from_numpy(labels)[None]),
        gt_edge_map=PixelData(data=torch.from_numpy(edges)[None]),
        metainfo=dict(img_shape=size, ori_shape=size),
    )


SAMPLES: Mapping[str, Callable[[Any, int, Size, np.random.Generator], Any]] = dict(
    mmpretrain=image_sample, mmdet=scene_sample, mmseg=map_sample
)
"""What makes an annotation, by the host's scope."""
