"""Classifiers of a few thousand parameters, teachers with random weights and random batches.

Every family of classifier that mmpretrain has is here in small: a map that is pooled into a linear
layer, hidden layers between, transformers with a class token or averaged tokens, several labels.
"""

import copy
import os.path as osp
import re
from typing import Any

import torch
from mmengine.config import ConfigDict
from mmengine.registry import MODELS as MMENGINE_MODELS
from torch import Tensor

TOY_CLASSES = 5
TOY_KINDS = ('gap', 'stacked', 'vit', 'vit_hidden', 'vit_avg', 'swin', 'multi_label')


def classifier_config(kind: str = 'gap', width: int = 4, num_classes: int = TOY_CLASSES, image_size: int = 16) -> ConfigDict:
    """Return the config of a small mmpretrain classifier, ready to be built by mmengine's root registry.

    ============= ==================== =============================================== ==========
    kind          backbone             head                                            feature
    ============= ==================== =============================================== ==========
    'gap'         CIFAR ResNet-8       average pooling, LinearClsHead                  (B,4w,H,W)
    'stacked'     CIFAR ResNet-8       average pooling, StackedLinearClsHead           (B,3w)
    'vit'         VisionTransformer    VisionTransformerClsHead on the class token     (B,4w)
    'vit_hidden'  VisionTransformer    the same with a hidden layer                    (B,3w)
    'vit_avg'     VisionTransformer    LinearClsHead on the averaged tokens            (B,4w)
    'swin'        SwinTransformer      average pooling, LinearClsHead                  (B,8w,H,W)
    'multi_label' CIFAR ResNet-8       average pooling, MultiLabelLinearClsHead        (B,4w,H,W)
    ============= ==================== =============================================== ==========

    Args:
        kind (str): One of :data:`TOY_KINDS`. Defaults to 'gap'.
        width (int): Scales all channels (w above); even, for the transformers. Defaults to 4.
        num_classes (int): Number of classes. Defaults to :data:`TOY_CLASSES`.
        image_size (int): Height and width of the images, a multiple of 16 for 'swin' and of 4 for
            the other transformers. Defaults to 16.

    Returns:
        ConfigDict: The config, with its scope.

    Raises:
        ValueError: If the kind is unknown.
    """
    channels = 4 * width
    convolutional = dict(type='dskd_mm.CIFARResNet', depth=8, stem_channels=width, base_channels=width)
    transformer = dict(
        type='VisionTransformer',
        arch=dict(embed_dims=channels, num_layers=2, num_heads=2, feedforward_channels=channels),
        img_size=image_size,
        patch_size=4,
        out_type='avg_featmap' if kind == 'vit_avg' else 'cls_token',
    )
    pooling = dict(type='GlobalAveragePooling')
    linear = dict(type='LinearClsHead', num_classes=num_classes, in_channels=channels)
    token = dict(type='VisionTransformerClsHead', num_classes=num_classes, in_channels=channels)
    parts: dict[str, tuple[dict, dict | None, dict]] = {
        'gap': (convolutional, pooling, linear),
        'stacked': (
            convolutional,
            pooling,
            {**linear, 'type': 'StackedLinearClsHead', 'mid_channels': [2 * width, 3 * width]},
        ),
        'vit': (transformer, None, token),
        'vit_hidden': (transformer, None, {**token, 'hidden_dim': 3 * width}),
        'vit_avg': (transformer, None, linear),
        'swin': (
            dict(
                type='SwinTransformer',
                arch=dict(embed_dims=channels, depths=[1, 1], num_heads=[1, 2]),
                img_size=image_size,
                patch_size=2,
                window_size=4,
                out_indices=(1,),
            ),
            pooling,
            {**linear, 'in_channels': 2 * channels},
        ),
        'multi_label': (convolutional, pooling, {**linear, 'type': 'MultiLabelLinearClsHead'}),
    }
    if kind not in parts:
        raise ValueError(f'kind of a toy classifier must be one of {TOY_KINDS}, but got {kind!r}.')
    backbone, neck, head = parts[kind]
    preprocessor = dict(mean=[120.0, 110.0, 100.0], std=[60.0, 62.0, 64.0], to_rgb=True)
    model = dict(
        type='ImageClassifier',
        _scope_='mmpretrain',
        data_preprocessor=dict(type='ClsDataPreprocessor', num_classes=num_classes, **preprocessor),
        backbone=backbone,
        head=head,
    )
    if neck is not None:
        model['neck'] = neck
    return ConfigDict(model)


def random_teacher(directory: str, seed: int = 0, **kwargs: Any) -> dict[str, Any]:
    """Save a teacher with random weights.

    Its classification layer is drawn with a standard deviation of 0.2, wide enough for predictions
    that differ between classes.

    Args:
        directory (str): Where to write ``teacher.pth``.
        seed (int): Seed of the weights. Defaults to 0.
        **kwargs: Arguments of :func:`classifier_config`, by default with ``width=6``.

    Returns:
        dict: ``config`` and ``checkpoint``, the arguments of a distiller's teacher.
    """
    config = classifier_config(**{'width': 6, **kwargs})
    checkpoint = osp.join(directory, 'teacher.pth')
    save_random_model(config, checkpoint, r'^head\.', seed)
    return dict(config=dict(model=config), checkpoint=checkpoint)


def save_random_model(config: ConfigDict, path: str, wide: str, seed: int = 0) -> None:
    """Save the checkpoint of a model with random weights.

    Args:
        config (ConfigDict): The model.
        path (str): Where to write it.
        wide (str): Regular expression for the names of weights that are drawn with a standard deviation of 0.2, wide enough for
            predictions that differ between classes.
        seed (int): Seed of the weights. Defaults to 0.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MMENGINE_MODELS.build(copy.deepcopy(config))  # some heads write into theirs
        for name, parameter in model.named_parameters():
            if re.search(wide, name) and parameter.ndim > 1:
                torch.nn.init.normal_(parameter, std=0.2)
    torch.save(dict(meta=dict(), state_dict=model.state_dict()), path)


def random_batch(
    batch: int = 4,
    num_classes: int = TOY_CLASSES,
    image_size: int = 16,
    multi_label: bool = False,
    seed: int = 0,
) -> tuple[Tensor, list]:
    """Draw preprocessed images and labels.

    Args:
        batch (int): Number of images. Defaults to 4.
        num_classes (int): Number of classes. Defaults to :data:`TOY_CLASSES`.
        image_size (int): Height and width. Defaults to 16.
        multi_label (bool): Whether an image has several labels (one to three). Defaults to False.
        seed (int): Seed of everything. Defaults to 0.

    Returns:
        tuple[Tensor, list[DataSample]]: Images (B, 3, image_size, image_size) and annotations.
    """
    from mmpretrain.structures import DataSample

    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(batch, 3, image_size, image_size, generator=generator)
    samples = []
    for i in range(batch):
        order = torch.randperm(num_classes, generator=generator)
        samples.append(DataSample().set_gt_label(order[: 1 + i % 3 if multi_label else 1]))
    return images, samples
