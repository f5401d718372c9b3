"""Random batches in a host's own format, for what needs a training step but no data: pre-flight checks, costs, tests."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from mmengine.config import Config

Size = tuple[int, int]


def synthetic_batch(cfg: Config, images: int = 2, size: Size = (96, 128), seed: int = 0) -> dict[str, list]:
    """Random images with random annotations, as a data loader yields them for a config.

    Args:
        cfg (Config): Config of a distiller or of a plain model, with a ``default_scope``.
        images (int): Number of images. Defaults to 2.
        size (tuple[int, int]): Height and width of the images. Defaults to (96, 128).
        seed (int): Seed of everything. Defaults to 0.

    Returns:
        dict[str, list]: 'inputs', tensors (C, H, W) of uint8, and 'data_samples'. An image of a detector has 1 to 7 objects
        (with masks, where it has a mask head), the top rows of a label map are ignored.

    Raises:
        ValueError: If the config is of no host that is known.
    """
    scope = cfg.get('default_scope')
    if scope not in SAMPLES:
        raise ValueError(f'A synthetic batch is known for default_scope {", ".join(SAMPLES)}, but the config has {scope!r}.')
    model = cfg.model.get('student', cfg.model)
    model = model.get('model', model)
    rng = np.random.default_rng(seed)
    channels = model.backbone.get('in_channels', 3)
    inputs = [torch.from_numpy(rng.integers(256, size=(channels, *size), dtype=np.uint8)) for _ in range(images)]
    return dict(inputs=inputs, data_samples=[SAMPLES[scope](cfg, model, size, rng) for _ in inputs])


def image_sample(cfg: Config, model: Any, size: Size, rng: np.random.Generator) -> Any:
    """A label of mmpretrain."""
    from mmpretrain.structures import DataSample

    preprocessor = model.get('data_preprocessor') or cfg.get('data_preprocessor') or {}
    num_classes = model.head.get('num_classes') or preprocessor['num_classes']
    return DataSample().set_gt_label(int(rng.integers(num_classes)))


def scene_sample(cfg: Config, model: Any, size: Size, rng: np.random.Generator) -> Any:
    """Boxes of mmdet, with masks where the model has a head for them."""
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    height, width = size
    head = model.get('bbox_head') or first(model.roi_head.bbox_head)
    count = int(rng.integers(1, 8))
    corner = rng.uniform(0, 0.6, (count, 2)) * (width, height)
    extent = rng.uniform(0.1, 0.4, (count, 2)) * (width, height)
    boxes = np.concatenate([corner, corner + extent], axis=1).astype(np.float32)
    instances = InstanceData(
        bboxes=torch.from_numpy(boxes), labels=torch.from_numpy(rng.integers(head.num_classes, size=count))
    )
    if 'mask_head' in model.get('roi_head', {}):
        masks = np.zeros((count, height, width), np.uint8)
        for mask, (left, top, right, bottom) in zip(masks, boxes.astype(int), strict=True):
            mask[top:bottom, left:right] = 1
        instances.masks = BitmapMasks(masks, height, width)
    shape = dict(img_shape=size, ori_shape=size, pad_shape=size, batch_input_shape=size, scale_factor=(1.0, 1.0))
    sample = DetDataSample(gt_instances=instances, metainfo=dict(img_id=0, img_path='synthetic', flip=False, **shape))
    sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
    return sample


def map_sample(cfg: Config, model: Any, size: Size, rng: np.random.Generator) -> Any:
    """A label map of mmseg: blocks of classes, the top rows ignored."""
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    head = model.decode_head[-1] if isinstance(model.decode_head, list) else model.decode_head
    block = 16
    coarse = rng.integers(head.num_classes, size=[-(-side // block) for side in size])
    labels = np.kron(coarse, np.ones((block, block), np.int64))[: size[0], : size[1]]
    labels[: size[0] // 8] = head.get('ignore_index', 255)
    return SegDataSample(
        gt_sem_seg=PixelData(data=torch.from_numpy(labels)[None]), metainfo=dict(img_shape=size, ori_shape=size)
    )


def first(config: Any) -> Any:
    """The first of several stages, or the only one."""
    return config[0] if isinstance(config, list) else config


SAMPLES: Mapping[str, Callable[[Config, Any, Size, np.random.Generator], Any]] = dict(
    mmpretrain=image_sample, mmdet=scene_sample, mmseg=map_sample
)
"""What makes an annotation, by the host's scope."""
