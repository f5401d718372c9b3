"""Detectors and segmenters of a few thousand parameters: the hosts' own configs, shrunk in place.

All structure (anchors, assigners, losses, dilations) is the host's; only depths, widths, classes and counts are small.
"""

import logging
import os.path as osp
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.registry import MODELS as MMENGINE_MODELS
from torch import Tensor, nn

from dskd_mm.testing import save_random_model
from dskd_mm.utils.config import load_config, model_config, nodes

DENSE_CLASSES = 3
"""Number of classes of all toy detectors and segmenters, binary ones aside."""
DENSE_SIZE = (64, 96)
"""Height and width of their images: not square, so that no test passes with rows and columns confused."""

DETECTORS = {
    'retinanet': 'retinanet/retinanet_r18_fpn_1x_coco.py',
    'retinanet_softmax': 'retinanet/retinanet_r18_fpn_1x_coco.py',
    'fcos': 'fcos/fcos_r50-caffe_fpn_gn-head_1x_coco.py',
    'atss': 'atss/atss_r50_fpn_1x_coco.py',
    'gfl': 'gfl/gfl_r50_fpn_1x_coco.py',
    'rtmdet': 'rtmdet/rtmdet_tiny_8xb32-300e_coco.py',
    'faster_rcnn': 'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
    'cascade_rcnn': 'cascade_rcnn/cascade-rcnn_r50_fpn_1x_coco.py',
    'mask_rcnn': 'mask_rcnn/mask-rcnn_r50_fpn_1x_coco.py',
    'detr': 'detr/detr_r50_8xb2-150e_coco.py',
}
"""Toy detectors by name, and the configs of mmdet that they are made of."""
ZOO_DETECTORS = {
    'vfnet': 'vfnet/vfnet_r50_fpn_1x_coco.py',
    'tood': 'tood/tood_r50_fpn_1x_coco.py',
    'ddod': 'ddod/ddod_r50_fpn_1x_coco.py',
    'foveabox': 'foveabox/fovea_r50_fpn_4xb4-1x_coco.py',
    'fsaf': 'fsaf/fsaf_r50_fpn_1x_coco.py',
    'nas_fcos': 'nas_fcos/nas-fcos_r50-caffe_fpn_nashead-gn-head_4xb4-1x_coco.py',
    'yolof': 'yolof/yolof_r50-c5_8xb8-1x_coco.py',
    'centernet_update': 'centernet/centernet-update_r50-caffe_fpn_ms-1x_coco.py',
    'condinst': 'condinst/condinst_r50_fpn_ms-poly-90k_coco_instance.py',
    'autoassign': 'autoassign/autoassign_r50-caffe_fpn_1x_coco.py',
    'paa': 'paa/paa_r50_fpn_1x_coco.py',
    'freeanchor': 'free_anchor/freeanchor_r50_fpn_1x_coco.py',
    'sabl': 'sabl/sabl-retinanet_r50_fpn_1x_coco.py',
    'reppoints': 'reppoints/reppoints-moment_r50_fpn_1x_coco.py',
    'ga_retinanet': 'guided_anchoring/ga-retinanet_r50_fpn_1x_coco.py',
    'ssd': 'ssd/ssdlite_mobilenetv2-scratch_8xb24-600e_coco.py',
    'yolov3': 'yolo/yolov3_d53_8xb8-ms-608-273e_coco.py',
}
"""Further dense detectors of mmdet's zoo, which only some tests build."""
SEGMENTORS = {
    'fcn': 'fcn_r50-d8.py',
    'pspnet': 'pspnet_r50-d8.py',
    'deeplabv3': 'deeplabv3_r50-d8.py',
    'deeplabv3plus': 'deeplabv3plus_r50-d8.py',
    'upernet': 'upernet_r50.py',
    'segformer': 'segformer_mit-b0.py',
    'ocrnet': 'ocrnet_r50-d8.py',
    'binary': 'fcn_r50-d8.py',
}
"""Toy segmenters by name, and the models of mmseg that they are made of; 'binary' has one output and a threshold."""
ZOO_SEGMENTORS = {
    'point_rend': '_base_/models/pointrend_r50.py',
    'knet': 'knet/knet-s3_r50-d8_fcn_8xb2-adamw-80k_ade20k-512x512.py',
    'segmenter': '_base_/models/segmenter_vit-b16_mask.py',
    'mask2former': 'mask2former/mask2former_r50_8xb2-90k_cityscapes-512x1024.py',
}
"""Further segmenters of mmseg's zoo, whose last head is no convolution."""

BACKBONES = {8: ((1, 2, 1, 1), (1, 1, 2, 4)), 16: ((1, 2, 2, 1), (1, 1, 1, 2)), 32: ((1, 2, 2, 2), (1, 1, 1, 1))}
"""Strides and dilations of a ResNet's stages by the stride of its output."""


def detector_config(kind: str, width: int = 4, num_classes: int = DENSE_CLASSES) -> ConfigDict:
    """Config of a small detector of mmdet, ready to be built by mmengine's root registry.

    Args:
        kind (str): One of :data:`DETECTORS` or :data:`ZOO_DETECTORS`.
        width (int): Scales all channels: the backbone has w to 8w, neck and head have 2w. Even. Defaults to 4.
        num_classes (int): Number of classes. Defaults to :data:`DENSE_CLASSES`.

    Returns:
        ConfigDict: The config, with its scope.
    """
    model = _without_pretraining(model_config(load_config(f'mmdet::{ {**DETECTORS, **ZOO_DETECTORS}[kind] }')))
    levels, channels = [width, 2 * width, 4 * width, 8 * width], 2 * width
    if kind == 'rtmdet':
        # CSPNeXt's widths are multiples of 64 before they are scaled.
        model.backbone.update(widen_factor=width / 64, norm_cfg=dict(type='BN'))
        model.neck.update(in_channels=[4 * width, 8 * width, 16 * width], out_channels=channels, norm_cfg=dict(type='BN'))
        model.bbox_head.norm_cfg = dict(type='BN')
    elif kind in ('ssd', 'yolov3'):
        _shrink_to_widths(model, kind, levels)
    else:
        model.backbone.update(depth=18, base_channels=width)
        single = kind in ('detr', 'yolof')
        model.neck.update(in_channels=levels[-1:] if single else levels, out_channels=channels)
    if kind == 'detr':
        _shrink_transformer(model, channels, num_classes)
    elif 'roi_head' in model:
        _shrink_stages(model, channels, num_classes)
    elif kind in ('ssd', 'yolov3'):
        model.bbox_head.num_classes = num_classes
    else:
        model.bbox_head.update(num_classes=num_classes, in_channels=channels, feat_channels=channels, stacked_convs=1)
        if kind in ('fcos', 'atss', 'gfl', 'vfnet', 'tood', 'ddod', 'centernet_update', 'condinst', 'autoassign', 'paa'):
            model.bbox_head.norm_cfg = dict(type='GN', num_groups=4, requires_grad=True)
        _shrink_particulars(model, kind, channels)
    if kind == 'retinanet_softmax':
        model.bbox_head.loss_cls = dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0)
    return model


def _shrink_particulars(model: ConfigDict, kind: str, channels: int) -> None:
    """Shrink what only some dense detectors have."""
    head = model.bbox_head
    for node in nodes([head, model.neck]):
        if node.get('type') == 'GN':
            node.num_groups = 4
    if kind == 'yolof':
        model.neck.update(in_channels=4 * channels, block_mid_channels=channels)
        del head.feat_channels, head.stacked_convs
        head.update(num_cls_convs=1, num_reg_convs=1)
    if kind == 'condinst':
        model.mask_head.mask_feature_head.update(in_channels=channels, feat_channels=channels)
    if kind == 'reppoints':
        head.point_feat_channels = channels


def _shrink_to_widths(model: ConfigDict, kind: str, levels: list[int]) -> None:
    """Shrink a detector whose levels have different widths, on a ResNet."""
    three = kind == 'yolov3'
    model.backbone = dict(type='ResNet', depth=18, base_channels=levels[0], out_indices=(1, 2, 3) if three else (2, 3))
    if three:
        widths = levels[2], levels[1], levels[0]
        model.neck.update(in_channels=levels[:0:-1], out_channels=widths)
        model.bbox_head.update(in_channels=widths, out_channels=widths)
        return
    widths = levels[2], levels[3], levels[1], levels[1]
    model.neck.update(in_channels=widths[:2], out_channels=widths, level_strides=(2, 2), level_paddings=(1, 1))
    model.bbox_head.in_channels = widths
    anchors = dict(strides=[16, 32, 64, 96], ratios=[[2], [2, 3], [2, 3], [2]])
    model.bbox_head.anchor_generator.update(anchors, min_sizes=[8, 16, 32, 48], max_sizes=[16, 32, 48, 64])


def _shrink_stages(model: ConfigDict, channels: int, num_classes: int) -> None:
    """Shrink a two-stage detector behind its neck."""
    model.rpn_head.update(in_channels=channels, feat_channels=channels)
    roi_head = model.roi_head
    for stage in _as_list(roi_head.bbox_head):
        stage.update(in_channels=channels, fc_out_channels=2 * channels, num_classes=num_classes, roi_feat_size=3)
    roi_head.bbox_roi_extractor.out_channels = channels
    roi_head.bbox_roi_extractor.roi_layer.output_size = 3
    if 'mask_head' in roi_head:
        roi_head.mask_roi_extractor.out_channels = channels
        roi_head.mask_head.update(num_convs=1, in_channels=channels, conv_out_channels=channels, num_classes=num_classes)
    for cfg in _as_list(model.train_cfg.rcnn):
        cfg.sampler.num = 24
    model.train_cfg.rpn_proposal.update(nms_pre=60, max_per_img=40)
    model.test_cfg.rpn.update(nms_pre=60, max_per_img=40)


def _shrink_transformer(model: ConfigDict, channels: int, num_classes: int) -> None:
    """Shrink a DETR behind its neck."""
    for part in ('encoder', 'decoder'):
        model[part].num_layers = 2
        for node in nodes(model[part]):
            if 'embed_dims' in node:
                node.embed_dims = channels
            if 'num_heads' in node:
                node.num_heads = 2
            if 'feedforward_channels' in node:
                node.feedforward_channels = 2 * channels
    model.num_queries = 8
    model.positional_encoding.num_feats = channels // 2
    model.bbox_head.update(num_classes=num_classes, embed_dims=channels)


def segmentor_config(kind: str, width: int = 4, num_classes: int = DENSE_CLASSES, stride: int = 8) -> ConfigDict:
    """Config of a small segmenter of mmseg, ready to be built by mmengine's root registry.

    Args:
        kind (str): One of :data:`SEGMENTORS`.
        width (int): Scales all channels: the backbone has w to 8w, heads have 2w. Even. Defaults to 4.
        num_classes (int): Number of classes; a binary one has 2. Defaults to :data:`DENSE_CLASSES`.
        stride (int): 8, 16 or 32, the stride of the last level; UPerNet and SegFormer always have that of their models.
            Defaults to 8.

    Returns:
        ConfigDict: The config, with its scope.
    """
    model = _without_pretraining(model_config(load_config(f'mmseg::_base_/models/{SEGMENTORS[kind]}')))
    model._scope_ = 'mmseg'
    model.data_preprocessor.size = DENSE_SIZE
    levels = [width, 2 * width, 4 * width, 8 * width]
    if kind == 'segformer':
        levels = [width, 2 * width, 2 * width, 2 * width]
        model.backbone.update(embed_dims=width, num_layers=[1] * 4, num_heads=[1, 2, 2, 2])
    else:
        model.backbone.update(depth=18, base_channels=width, stem_channels=width)
        if kind != 'upernet':
            strides, dilations = BACKBONES[stride]
            model.backbone.update(strides=strides, dilations=dilations)
    heads = [head for part in ('decode_head', 'auxiliary_head') for head in _as_list(model.get(part))]
    for head in heads:
        several = isinstance(head.in_channels, list)
        head.update(in_channels=levels if several else levels[head.in_index], channels=2 * width, num_classes=num_classes)
        if 'ocr_channels' in head:
            head.ocr_channels = width
    if kind == 'deeplabv3plus':
        model.decode_head.update(c1_in_channels=width, c1_channels=width)
    if kind == 'binary':
        for head in heads:
            head.update(num_classes=2, out_channels=1, threshold=0.3)
            head.loss_decode.use_sigmoid = True
    for node in nodes(model):
        if node.get('type') == 'SyncBN':
            node.type = 'BN'
    return model


def zoo_segmentor_config(kind: str, width: int = 4) -> ConfigDict:
    """Config of a small segmenter of :data:`ZOO_SEGMENTORS`, with the arguments of :func:`segmentor_config`."""
    model = _without_pretraining(model_config(load_config(f'mmseg::{ZOO_SEGMENTORS[kind]}')))
    model._scope_ = 'mmseg'
    model.data_preprocessor.size = DENSE_SIZE
    levels, channels = [width, 2 * width, 4 * width, 8 * width], 4 * width
    small = dict(embed_dims=channels, num_heads=2, feedforward_channels=2 * channels, num_feats=channels // 2, num_groups=4)
    small |= dict(num_classes=DENSE_CLASSES, feat_channels=channels, num_queries=8, num_points=64)
    model.pop('auxiliary_head', None)
    for node in nodes([model.decode_head, model.backbone]):
        # A deformable attention's points are another thing than those that a loss looks at.
        node.update({key: value for key, value in small.items() if key in node and not (key == 'num_points' and node[key] < 9)})
        if node.get('type') == 'SyncBN':
            node.type = 'BN'
        if node.get('num_layers', 0) > 2:
            node.num_layers = 2
    if kind == 'segmenter':
        model.backbone.update(img_size=DENSE_SIZE, embed_dims=channels, drop_path_rate=0.0)
        model.decode_head.update(in_channels=channels, channels=channels)
        return model
    model.backbone.update(depth=18, base_channels=width, norm_cfg=dict(type='BN'))
    if kind != 'mask2former':
        model.backbone.stem_channels = width
    if kind == 'point_rend':
        model.neck.update(in_channels=levels, out_channels=channels)
        model.decode_head[0].update(in_channels=[channels] * 4, channels=channels)
        model.decode_head[1].update(in_channels=[channels], channels=channels)
        model.train_cfg.num_points = 64
    elif kind == 'knet':
        model.decode_head.kernel_generate_head.update(in_channels=levels[-1], channels=channels, num_convs=1)
        for stage in model.decode_head.kernel_update_head:
            stage.update(in_channels=channels, out_channels=channels)
            stage.kernel_updator_cfg.update(in_channels=channels, out_channels=channels)
    else:
        model.decode_head.update(in_channels=levels, out_channels=channels)
        model.decode_head.loss_cls.class_weight = [1.0] * DENSE_CLASSES + [0.1]
        model.decode_head.train_cfg.num_points = 64
    return model


def _as_list(config: Any) -> list:
    """One config or a list of them, or none, as a list."""
    return config if isinstance(config, list) else [config] if config else []


def _without_pretraining(model: ConfigDict) -> ConfigDict:
    """A model's config without weights that would be downloaded, in place."""
    for node in nodes(model):
        if 'pretrained' in node:
            node.pretrained = None
        if (node.get('init_cfg') or {}).get('type') == 'Pretrained':
            node.init_cfg = None
    return model


def dense_distiller_config(
    kind: str,
    directory: str,
    student: dict | None = None,
    teacher: dict | None = None,
    **kwargs: Any,
) -> ConfigDict:
    """Config of a distiller of a toy detector or segmenter, whose teacher has random weights.

    Args:
        kind (str): One of :data:`DETECTORS` or :data:`SEGMENTORS`.
        directory (str): Where to write the teacher's weights.
        student (dict, optional): Other arguments of :func:`detector_config` or :func:`segmentor_config`. Defaults to None.
        teacher (dict, optional): The same of the teacher, by default of width 6. Its 'kind' may differ. Defaults to None.
        **kwargs: Other arguments of :class:`~dskd_mm.distillers.DSKDDistiller`.

    Returns:
        ConfigDict: The config, ready to be built by mmengine's root registry.
    """
    make: Any = zoo_segmentor_config if kind in ZOO_SEGMENTORS else segmentor_config
    make = detector_config if kind in {**DETECTORS, **ZOO_DETECTORS} else make
    config = make(**{'kind': kind, 'width': 6, **(teacher or {})})
    checkpoint = osp.join(directory, 'teacher.pth')
    # Detectors begin with equal predictions everywhere: a teacher of such weights would have no opinion.
    save_random_model(config, checkpoint, r'cls|conv_seg')
    return ConfigDict(
        type='dskd_mm.DSKDDistiller',
        student=make(kind, **(student or {})),
        teacher=dict(config=dict(model=config), checkpoint=checkpoint),
        **kwargs,
    )


@contextmanager
def initialised(config: dict, seed: int = 0) -> Iterator[Any]:
    """Build a model and initialise it as a runner does; within, random numbers go on from there, without they do not move."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MMENGINE_MODELS.build(config)
        # mmengine logs several lines for each parameter.
        logging.disable(logging.INFO)
        try:
            model.init_weights()
        finally:
            logging.disable(logging.NOTSET)
        yield model


def build_distiller(config: dict) -> nn.Module:
    """Build a distiller and initialise it as a runner does, always with the same weights."""
    with initialised(config) as distiller:
        return distiller.train()


Boxes = Sequence[tuple[float, float, float, float, int]]


def random_boxes(count: int, num_classes: int = DENSE_CLASSES, seed: int = 0) -> Boxes:
    """Draw boxes for :func:`detection_batch`: at least 16 pixels wide and high."""
    generator, (height, width) = np.random.default_rng(seed), DENSE_SIZE
    boxes = []
    for _ in range(count):
        w, h = generator.uniform(16, width / 2), generator.uniform(16, height / 2)
        x, y = generator.uniform(0, width - w), generator.uniform(0, height - h)
        boxes.append((x, y, x + w, y + h, int(generator.integers(num_classes))))
    return boxes


def detection_batch(model: nn.Module, boxes: Sequence[Boxes], masks: bool = False, seed: int = 0) -> dict[str, Any]:
    """A batch of noise with objects in it, prepared by a model's own preprocessor.

    Args:
        model (nn.Module): A detector or a distiller of one.
        boxes (Sequence): For each image its objects as (left, top, right, bottom, class); none is an image without objects.
        masks (bool): Whether objects have masks, ellipses. Defaults to False.
        seed (int): Seed of the noise. Defaults to 0.

    Returns:
        dict: 'inputs' (B, 3, H, W) and 'data_samples'.
    """
    from mmdet.structures import DetDataSample
    from mmdet.structures.mask import BitmapMasks
    from mmengine.structures import InstanceData

    (height, width), samples = DENSE_SIZE, []
    for index, objects in enumerate(boxes):
        table = np.array(objects, np.float32).reshape(-1, 5)
        ground_truth = InstanceData(
            bboxes=torch.from_numpy(table[:, :4].copy()),
            labels=torch.from_numpy(table[:, 4].astype(np.int64)),
        )
        if masks:
            ground_truth.masks = BitmapMasks([_ellipse(box) for box in table[:, :4]], height, width)
        shape = dict(img_shape=DENSE_SIZE, ori_shape=DENSE_SIZE, scale_factor=(1.0, 1.0))
        sample = DetDataSample(gt_instances=ground_truth, metainfo=dict(img_id=index, flip=False, **shape))
        sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.long))
        samples.append(sample)
    return _preprocess(model, len(boxes), samples, seed)


def _ellipse(box: np.ndarray) -> np.ndarray:
    """The ellipse in a box (left, top, right, bottom), uint8 of :data:`DENSE_SIZE`."""
    y, x = np.mgrid[: DENSE_SIZE[0], : DENSE_SIZE[1]]
    centre, radius = (box[:2] + box[2:]) / 2, (box[2:] - box[:2]) / 2
    return (((x - centre[0]) / radius[0]) ** 2 + ((y - centre[1]) / radius[1]) ** 2 <= 1).astype(np.uint8)


def segmentation_batch(model: nn.Module, labels: Tensor, seed: int = 0) -> dict[str, Any]:
    """A batch of noise, prepared by a model's own preprocessor.

    Args:
        model (nn.Module): A segmenter or a distiller of one.
        labels (Tensor): Label maps (B, H, W) of :data:`DENSE_SIZE`, long; 255 is ignored.
        seed (int): Seed of the noise. Defaults to 0.

    Returns:
        dict: 'inputs' (B, 3, H, W) and 'data_samples'.
    """
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample

    samples = [
        SegDataSample(gt_sem_seg=PixelData(data=label[None]), metainfo=dict(img_shape=DENSE_SIZE, ori_shape=DENSE_SIZE))
        for label in labels
    ]
    return _preprocess(model, len(labels), samples, seed)


def _preprocess(model: nn.Module, count: int, samples: list, seed: int) -> dict[str, Any]:
    noise = torch.Generator().manual_seed(seed)
    images = torch.randint(256, (count, 3, *DENSE_SIZE), generator=noise, dtype=torch.uint8)
    preprocessor: Any = model.data_preprocessor
    return preprocessor(dict(inputs=list(images), data_samples=samples), True)
