"""Heads that stand apart: distilled where they classify, or refused with a way that is followed here and trains."""

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip('mmdet')
pytest.importorskip('mmpretrain')

from mmengine.config import ConfigDict
from mmengine.registry import MODELS

from dskd_mm.sites import DenseDetectionSite, NeckSite, naming_the_neck
from dskd_mm.sites.base import calling_the_head
from dskd_mm.teacher import FrozenTeacher
from dskd_mm.testing import assert_distils, classifier_config, identity_step, make_identical, random_batch, random_teacher
from dskd_mm.testing.toy import save_random_model
from dskd_mm.utils.config import load_config, model_config, nodes
from support import (
    build_distiller,
    dense_distiller_config,
    detection_batch,
    detector_config,
    random_boxes,
    segmentation_batch,
)

NECK_SITE = r"site=dict\(type='dskd_mm.NeckSite'\)"
AT_THE_NECK = rf'Distil at the neck instead: {NECK_SITE}.'
OBJECTS = [random_boxes(3), random_boxes(2, seed=1)]
ROI_HEADS = {
    'htc': 'htc/htc_r50_fpn_1x_coco.py',
    'scnet': 'scnet/scnet_r50_fpn_1x_coco.py',
    'grid_rcnn': 'grid_rcnn/grid-rcnn_r50_fpn_gn-head_1x_coco.py',
    'sparse_rcnn': 'sparse_rcnn/sparse-rcnn_r50_fpn_1x_coco.py',
}
CHANNELS = 16


def roi_config(kind: str) -> ConfigDict:
    """Config of a detector of mmdet with a head of its own for proposals, on a small network."""
    small = detector_config('faster_rcnn', width=CHANNELS // 2)
    model = model_config(load_config(f'mmdet::{ROI_HEADS[kind]}'))
    model.backbone, model.neck = small.backbone, {**small.neck, 'start_level': 0, 'num_outs': model.neck.num_outs}
    for node in nodes([model.rpn_head, model.roi_head]):
        node.update({key: CHANNELS for key, value in node.items() if value == 256})
        node.update({key: 2 * CHANNELS for key, value in node.items() if value == 1024})
        node.update({key: 1 for key in ('num_convs', 'num_layers') if key in node})
        if node.get('type') == 'GN':
            node.num_groups = 4
        if node.get('type') == 'DynamicConv':
            node.feat_channels = 4
    if 'num_proposals' in model.rpn_head:
        model.rpn_head.num_proposals = 8
    else:
        model.train_cfg.rpn_proposal.update(nms_pre=60, max_per_img=40)
    return model


def of_itself(model: ConfigDict, tmp_path: Path, wide: str, **options: Any) -> dict[str, Any]:
    """Config of a distiller of a model whose teacher is like it."""
    save_random_model(model, str(tmp_path / 'teacher.pth'), wide)
    teacher = dict(config=dict(model=model), checkpoint=str(tmp_path / 'teacher.pth'))
    return dict(type='dskd_mm.DSKDDistiller', student=model, teacher=teacher, prior='teacher', **options)


def assert_identical(distiller: Any, batch: dict[str, Any], names: set[str]) -> None:
    """An identical student has nothing to learn, where another one has."""
    other, *_ = identity_step(distiller, batch)
    make_identical(distiller)
    found, *_ = identity_step(distiller, batch)
    assert set(found) == names and max(found.values()) < 1e-4 < max(other.values()), found


@pytest.mark.parametrize('kind', ['htc', 'scnet', 'grid_rcnn'])
def test_proposals_that_a_teacher_sees_in_their_context(tmp_path: Path, kind: str) -> None:
    """HTC and SCNet add semantics and the whole image to each proposal; without them the teacher says something else."""
    config = of_itself(roi_config(kind), tmp_path, 'fc_cls')
    distiller = build_distiller(config)
    batch = detection_batch(distiller, OBJECTS, masks=kind != 'grid_rcnn')
    if kind != 'grid_rcnn':
        from mmengine.structures import PixelData

        for sample in batch['data_samples']:
            labels = torch.zeros(1, *sample.batch_input_shape, dtype=torch.long)
            sample.gt_sem_seg = PixelData(sem_seg=labels, data=labels)
    assert distiller.student_spec.part.startswith('roi_head.bbox_head')
    assert_distils(distiller, batch)
    assert_identical(distiller, batch, {'feature', 'logits'} | ({'boxes'} if kind != 'grid_rcnn' else set()))


def test_proposals_that_are_queries_name_the_neck_which_works(tmp_path: Path) -> None:
    config = of_itself(roi_config('sparse_rcnn'), tmp_path, 'fc_cls')
    with pytest.raises(ValueError, match=rf"student's SparseRoIHead.*also takes.*'object_feats'.*{AT_THE_NECK}"):
        build_distiller(config)
    distiller = build_distiller({**config, 'site': dict(type='dskd_mm.NeckSite')})
    batch = detection_batch(distiller, OBJECTS)
    assert_distils(distiller, batch)
    assert_identical(distiller, batch, {'feature', 'head'})


def classifier(backbone: dict, head: dict, neck: dict | None = None) -> ConfigDict:
    model = classifier_config('gap')
    for name, part in dict(backbone=backbone, neck=neck, head=head).items():
        model[name] = part  # update would merge it into what was there
    return model


SWIN = dict(embed_dims=8, depths=[1, 1], num_heads=[1, 2], extra_norm_every_n_blocks=0)
CLASSIFIERS: dict[str, tuple[int, str, dict]] = {
    'lenet': (32, 'backbone.classifier.2', dict(backbone=dict(type='LeNet5', num_classes=5), head=dict(type='ClsHead'))),
    'inception': (
        75,
        'backbone.fc',
        dict(backbone=dict(type='InceptionV3', num_classes=5, aux_logits=False), head=dict(type='ClsHead')),
    ),
    'mixer': (
        16,
        'head.fc',
        dict(
            backbone=dict(
                type='MlpMixer',
                arch=dict(embed_dims=8, num_layers=1, tokens_mlp_dims=8, channels_mlp_dims=8),
                img_size=16,
                patch_size=4,
            ),
            neck=dict(type='GlobalAveragePooling', dim=1),
            head=dict(type='LinearClsHead', in_channels=8, num_classes=5),
        ),
    ),
    'vig': (
        16,
        'head.fc2',
        dict(
            backbone=dict(type='dskd_mm.CIFARResNet', depth=8, stem_channels=4, base_channels=4),
            neck=dict(type='GlobalAveragePooling'),
            head=dict(type='VigClsHead', in_channels=16, hidden_dim=8, num_classes=5),
        ),
    ),
    'swin_v2': (
        64,
        'head.fc',
        dict(
            backbone=dict(
                type='SwinTransformerV2', arch=SWIN, img_size=64, window_size=4, out_indices=(1,), drop_path_rate=0.0
            ),
            neck=dict(type='GlobalAveragePooling'),
            head=dict(type='LinearClsHead', in_channels=16, num_classes=5),
        ),
    ),
}


@pytest.mark.parametrize('kind', CLASSIFIERS)
def test_classifiers_that_stand_apart(tmp_path: Path, kind: str) -> None:
    size, layer, parts = CLASSIFIERS[kind]
    config = of_itself(classifier(**parts), tmp_path, r'head\.|fc|classifier')
    distiller = build_distiller(config)
    assert distiller.student_spec.classifiers == distiller.teacher_spec.classifiers == (layer,)
    images, samples = random_batch(image_size=size)
    images = images[:, :1] if kind == 'lenet' else images
    batch = dict(inputs=images, data_samples=samples)
    assert_distils(distiller, batch)
    assert_identical(distiller, batch, {'feature', 'logits'})


def test_a_head_without_a_linear_layer_names_the_neck_which_works(tmp_path: Path) -> None:
    head = dict(type='CSRAClsHead', num_classes=5, in_channels=16, num_heads=2, lam=0.1)
    head['loss'] = dict(type='CrossEntropyLoss', use_sigmoid=True)
    backbone = dict(type='dskd_mm.CIFARResNet', depth=8, stem_channels=4, base_channels=4)
    config = of_itself(classifier(backbone, head), tmp_path, 'head')
    with pytest.raises(ValueError, match=rf'CSRAClsHead.*has no linear layer.*LinearClsHead.*{AT_THE_NECK}'):
        build_distiller(config)
    distiller = build_distiller({**config, 'site': dict(type='dskd_mm.NeckSite')})
    images, samples = random_batch(multi_label=True)
    batch = dict(inputs=images, data_samples=samples)
    assert_distils(distiller, batch)
    assert_identical(distiller, batch, {'feature', 'head'})


@pytest.mark.parametrize(('kind', 'other'), [('retinanet', 'faster_rcnn'), ('faster_rcnn', 'retinanet')])
def test_detectors_of_one_and_of_two_stages(tmp_path: Path, kind: str, other: str) -> None:
    config = dense_distiller_config(kind, str(tmp_path), teacher=dict(kind=other))
    with pytest.raises(ValueError, match=rf"has no '\w+_head.*' in its config.*One of another family.*{NECK_SITE}"):
        build_distiller(config)
    distiller = build_distiller({**config, 'site': dict(type='dskd_mm.NeckSite')})
    assert_distils(distiller, detection_batch(distiller, OBJECTS))


@pytest.mark.parametrize(('kind', 'other'), [('fcn', 'binary'), ('binary', 'fcn')])
def test_two_classes_by_one_output_and_by_two(tmp_path: Path, kind: str, other: str) -> None:
    pytest.importorskip('mmseg')
    student, teacher = (dict(num_classes=2) if name == 'fcn' else {} for name in (kind, other))
    config = dense_distiller_config(kind, str(tmp_path), student=student, teacher=dict(kind=other, **teacher))
    with pytest.raises(ValueError, match=rf'outputs for 2 classes, the teacher.*out_channels.*{NECK_SITE}'):
        build_distiller(config)
    distiller = build_distiller({**config, 'site': dict(type='dskd_mm.NeckSite')})
    assert_distils(distiller, segmentation_batch(distiller, torch.arange(2).repeat(2, 32, 24)))


def test_distributions_of_other_bins_are_not_compared(tmp_path: Path) -> None:
    """DSKD leaves boxes out that do not correspond; a loss on them says so when it is built, and how to leave it out."""
    config = dense_distiller_config('gfl', str(tmp_path))
    config.teacher.config.model.bbox_head.reg_max = 8
    save_random_model(config.teacher.config.model, config.teacher.checkpoint, 'cls')
    distiller = build_distiller(config)
    assert distiller.box_imitation is None
    assert_distils(distiller, detection_batch(distiller, OBJECTS))
    losses = dict(kd=dict(type='dskd_mm.KDLoss'), box=dict(type='dskd_mm.BoxLoss'))
    config.update(type='dskd_mm.ConfigurableDistiller', distill_losses=losses)
    with pytest.raises(ValueError, match=r'bins=17.*bins=9.*Leave it out: model.distill_losses.box=None'):
        build_distiller(config)
    config.distill_losses.box = None
    distiller = build_distiller(config)
    losses = distiller(**detection_batch(distiller, OBJECTS), mode='loss')
    assert losses['loss_kd'] > 0 and 'loss_box' not in losses


def test_the_neck_is_named_where_it_is_a_way(tmp_path: Path) -> None:
    student = MODELS.build(classifier_config())
    teacher = FrozenTeacher.from_config(random_teacher(str(tmp_path)))

    def refuse(site: Any, model: Any, raiser: Any) -> str:
        with pytest.raises((ValueError, RuntimeError, AttributeError)) as caught, naming_the_neck(site, model, [teacher]):
            raiser()
        return str(caught.value)

    def ours() -> None:
        with calling_the_head(site, student.head):
            student.head.boxes()

    site = DenseDetectionSite()
    text = refuse(site, student, ours)
    assert text.startswith("The teacher's LinearClsHead is expected to run as DenseDetectionSite calls it, but got Attribute")
    assert text.endswith("Distil at the neck instead: site=dict(type='dskd_mm.NeckSite').")
    assert 'neck' not in refuse(site, student, lambda: student(torch.zeros(1, 2, 8, 8)))  # a fault of the model itself
    assert 'neck' not in refuse(NeckSite(), student, ours)
    assert 'neck' not in refuse(site, torch.nn.Linear(1, 1), ours)  # a network of one piece
