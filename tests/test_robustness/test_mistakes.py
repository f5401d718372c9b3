"""What a user does wrong, and what is said about it: what was expected, what came, and how to mend it.

Each table has a row for a mistake: how it is made, the error, and what its message has to contain. What only one site, loss or
tool refuses is in the tests of that.
"""

import copy
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config, ConfigDict
from mmengine.registry import MODELS as MMENGINE_MODELS

from dskd_mm.preflight import CHEAP, check_config, environment
from dskd_mm.testing import TOY_CLASSES, classifier_config, random_batch, random_teacher
from support import (
    DENSE_SIZE,
    build_distiller,
    dense_distiller_config,
    detection_batch,
    distiller_run_config,
    random_boxes,
    run_script,
    segmentation_batch,
)

ROOT = Path(__file__).parents[2]
Spoil = Callable[[Any], Any]
Row = tuple[Spoil, type[Exception], list[str]]


class CodeInAFile:
    """Would run code when unpickled."""

    def __reduce__(self) -> tuple[Callable, tuple]:
        return print, ('the code in the checkpoint ran',)


@pytest.fixture
def model(tmp_path: Path) -> ConfigDict:
    """A distiller's config for the cases to spoil."""
    return ConfigDict(type='dskd_mm.DSKDDistiller', student=classifier_config(), teacher=random_teacher(str(tmp_path)))


def set_feature(path: str, channels: int = 16, **kwargs: Any) -> Callable[[ConfigDict], None]:
    return lambda model: model.update(site=dict(feature=dict(path=path, channels=channels, **kwargs)))


def set_teacher(**kwargs: Any) -> Callable[[ConfigDict], None]:
    def spoil(model: ConfigDict) -> None:
        for key, value in kwargs.items():  # update() would merge
            model.teacher[key] = value

    return spoil


def set_kwargs(**kwargs: Any) -> Callable[[ConfigDict], None]:
    return lambda model: model.update(kwargs)


def drop_teacher_key(key: str) -> Callable[[ConfigDict], None]:
    return lambda model: model.teacher.pop(key)


def nest_a_distiller(model: ConfigDict) -> None:
    model.student = ConfigDict(model.copy())


def student_without_linear_classifier(model: ConfigDict) -> None:
    model.student.head = dict(type='ArcFaceClsHead', num_classes=TOY_CLASSES, in_channels=16)


def student_of_more_classes(model: ConfigDict) -> None:
    model.student = classifier_config(num_classes=TOY_CLASSES + 2)


def student_of_two_linear_classifiers(model: ConfigDict) -> None:
    model.student.head = dict(type='ConformerHead', num_classes=TOY_CLASSES, in_channels=[16, 16])


def container_as_feature(model: ConfigDict) -> None:
    model.student = classifier_config('vit')
    set_feature('backbone.layers')(model)


def add_layer(**side: Any) -> Spoil:
    good = dict(path='backbone.layer3', channels=16)
    return set_kwargs(layers=dict(middle=dict(student={**good, **side}, teacher=good)))


def add_loss(**config: Any) -> Spoil:
    return set_kwargs(distill_losses=dict(added=config))


def assert_says(error: BaseException | str, words: list[str]) -> None:
    message = str(error)
    assert [word for word in words if word not in message] == [], message


# name: (how the config is spoiled, the error, what its message must say)
AT_BUILD: dict[str, Row] = {
    'unknown_argument': (
        set_kwargs(taget='soft'),
        TypeError,
        [
            "DSKDDistiller has no argument 'taget'",
            "'soft'",
            "Did you mean 'target'?",
            'prior, mix, target, temperature',
            'site',
        ],
    ),
    'unknown_argument_of_a_part': (
        set_kwargs(denoiser=dict(kernal_size=1)),
        TypeError,
        ["DiffusionDenoiser has no argument 'kernal_size'", "Did you mean 'kernel_size'?", 'takes channels'],
    ),
    'unknown_argument_of_the_site': (
        set_kwargs(site=dict(stage=-1)),
        TypeError,
        ["site (ClassificationSite) has no argument 'stage'", 'classifier, teacher_classifier, feature'],
    ),
    'unknown_argument_of_a_loss': (
        add_loss(type='dskd_mm.KDLoss', tau=4),
        TypeError,
        ["distill_losses.added has no argument 'tau'", 'KDLoss takes temperature, loss_weight'],
    ),
    'unknown_argument_of_a_layer': (
        add_layer(indx=2),
        TypeError,
        ["layers.middle.student has no argument 'indx'", "Did you mean 'index'?"],
    ),
    'unknown_argument_of_a_pair': (
        set_kwargs(type='dskd_mm.DiffKDDistiller', pairs=dict(feature=dict(kernal_size=3))),
        TypeError,
        ["pairs.feature has no argument 'kernal_size'", "Did you mean 'kernel_size'?"],
    ),
    'unknown_added_loss': (
        add_loss(type='dskd_mm.KLLoss'),
        TypeError,
        ['distill_losses.added expects', 'ATLoss', 'KDLoss', "type='dskd_mm.KDLoss'", 'KLLoss'],
    ),
    'losses_without_names': (
        set_kwargs(distill_losses=[dict(type='dskd_mm.KDLoss')]),
        ValueError,
        ['distill_losses expects losses by names of your own', 'dict(kd=', 'got [{'],
    ),
    'loss_of_a_name_that_modules_have': (
        set_kwargs(distill_losses=dict(half=dict(type='dskd_mm.KDLoss'))),
        ValueError,
        ['names of your own', "got 'half'", 'rename'],
    ),
    'loss_of_a_name_that_each_module_has': (
        set_kwargs(distill_losses=dict(training=dict(type='dskd_mm.KDLoss'))),
        ValueError,
        ['names of your own', "got 'training'"],
    ),
    'loss_of_a_name_with_a_dot': (
        set_kwargs(distill_losses={'logits.kd': dict(type='dskd_mm.KDLoss')}),
        ValueError,
        ['without dots', "'logits.kd'"],
    ),
    'layer_by_its_path_alone': (
        set_kwargs(layers=dict(middle='backbone.layer3')),
        ValueError,
        ['layers.middle expects dict(student=', "got 'backbone.layer3'"],
    ),
    'layer_without_path': (
        set_kwargs(layers=dict(middle={owner: dict(channels=16) for owner in ('student', 'teacher')})),
        ValueError,
        ['layers.middle.student expects dict(path=...)', "got {'channels': 16}"],
    ),
    'weight_that_is_no_number': (set_kwargs(loss_weights=dict(lsh=None)), ValueError, ['loss_weights', "'lsh': None"]),
    'layer_of_one_model': (
        set_kwargs(layers=dict(middle=dict(student=dict(path='backbone', channels=16)))),
        ValueError,
        ['layers.middle expects', 'teacher=dict(path=...)', "['student']"],
    ),
    'loss_on_an_unknown_layer': (
        add_loss(type='dskd_mm.FitNetLoss', on='middle'),
        ValueError,
        ["distill_losses.added (FitNetLoss) reads 'middle'", "'feature', 'logits'", 'argument layers'],
    ),
    'loss_that_compares_nothing': (
        add_loss(type='mmpretrain.CrossEntropyLoss'),
        TypeError,
        ['distill_losses.added expects', 'DistillLoss of dskd_mm', 'KDLoss', 'CrossEntropyLoss'],
    ),
    'boxes_of_a_classifier': (
        add_loss(type='dskd_mm.BoxLoss'),
        ValueError,
        ['distill_losses.added (BoxLoss)', 'none', 'detectors of one family'],
    ),
    'no_loss_at_all': (
        set_kwargs(type='dskd_mm.ConfigurableDistiller', distill_losses={}),
        ValueError,
        ['at least one loss', 'distill_losses=dict(kd=', '{}'],
    ),
    'negative_weight': (set_kwargs(loss_weights=dict(lsh=-1.0)), ValueError, ['loss_weights', 'not negative', '-1.0']),
    'negative_warmup': (set_kwargs(warmup=-5), ValueError, ['warmup of DSKDDistiller', 'not be negative', '-5']),
    'no_temperature': (set_kwargs(temperature=0.0), ValueError, ['temperature of DSKDDistiller must be positive', '0.0']),
    'site_of_another_task': (
        set_kwargs(site=dict(type='dskd_mm.SegmentationSite')),
        ValueError,
        ['student (ImageClassifier)', "no module 'decode_head'"],
    ),
    'unknown_site': (
        set_kwargs(site=dict(type='dskd_mm.ClasificationSite')),
        KeyError,
        ['ClasificationSite is not in the', 'registry'],
    ),
    'student_is_a_path': (set_kwargs(student='student.py'), TypeError, ['plain model of a host', 'got a str', '_base_.model']),
    'student_is_a_whole_config': (
        lambda model: model.update(student=ConfigDict(_delete_=True, model=model.pop('student'), train_cfg={})),
        TypeError,
        ['student expects the config of a model', 'student=_base_.model', "['_delete_', 'model', 'train_cfg']"],
    ),
    'student_of_another_scope': (
        lambda model: model.student.update(type='mmdet.ImageClassifier'),
        KeyError,
        ['mmdet.ImageClassifier is not in the', 'registry'],
    ),
    'teacher_without_checkpoint': (
        drop_teacher_key('checkpoint'),
        TypeError,
        ['teacher expects dict(config=..., checkpoint=...)', "only ['config']"],
    ),
    'teacher_without_config': (
        drop_teacher_key('config'),
        TypeError,
        ['teacher expects dict(config=..., checkpoint=...)', "only ['checkpoint']"],
    ),
    'teacher_is_a_path': (
        set_kwargs(teacher='teacher.pth'),
        TypeError,
        ['teacher expects dict(config=..., checkpoint=...)', "'teacher.pth'"],
    ),
    'teacher_checkpoint_is_none': (
        set_teacher(checkpoint=None),
        TypeError,
        ['path or address', 'None'],
    ),
    'teacher_config_missing': (
        set_teacher(config='no/such/teacher.py'),
        FileNotFoundError,
        ['no/such/teacher.py', 'relative to the working directory', 'fileDirname'],
    ),
    'teacher_config_of_a_missing_package': (
        set_teacher(config='mmnothing::teacher.py'),
        ModuleNotFoundError,
        ["'mmnothing'", 'not installed'],
    ),
    'teacher_config_missing_in_a_package': (
        set_teacher(config='mmpretrain::resnet/resnet1_nowhere.py'),
        FileNotFoundError,
        ['resnet1_nowhere.py'],
    ),
    'teacher_config_without_model': (
        set_teacher(config=dict(data_root='data')),
        ValueError,
        ['config with a model', 'data_root'],
    ),
    'teacher_for_another_task': (
        set_teacher(config=dict(model=dict(type='mmdet.RetinaNet', bbox_head=dict()))),
        ValueError,
        ["no 'head'", 'bbox_head', 'another task'],
    ),
    'unknown_teacher_argument': (
        set_teacher(checkpont='x.pth'),
        TypeError,
        ['checkpont'],
    ),
    'other_number_of_classes': (
        student_of_more_classes,
        ValueError,
        ['student classifies 7', 'teacher 5', 'head.fc', 'both must know the same classes'],
    ),
    'student_is_a_distiller': (
        nest_a_distiller,
        TypeError,
        ['plain model of a host library', 'DSKDDistiller', 'student=_base_.model.student'],
    ),
    'student_without_linear_classifier': (
        student_without_linear_classifier,
        ValueError,
        ["student's head (ArcFaceClsHead)", 'one plain linear layer with 5 outputs', 'no linear layer', 'LinearClsHead'],
    ),
    'student_of_two_linear_classifiers': (
        student_of_two_linear_classifiers,
        ValueError,
        [
            "student's head (ConformerHead)",
            "2 of them: ['conv_cls_head', 'trans_cls_head']",
            "site=dict(classifier='head....')",
        ],
    ),
    'unknown_classifier': (
        set_kwargs(site=dict(classifier='head.fcc')),
        ValueError,
        ["no module 'fcc'", "'fc'"],
    ),
    'feature_without_channels': (
        set_kwargs(site=dict(feature=dict(path='backbone'))),
        ValueError,
        ['dict(path=..., channels=..., io=..., index=...)', 'backbone'],
    ),
    'unknown_prior': (
        set_kwargs(prior='techer'),
        ValueError,
        ['prior', "('student', 'teacher')", "'techer'"],
    ),
    'unknown_target': (
        set_kwargs(target='hard'),
        ValueError,
        ['target', "'label'", "'soft'", "'hard'"],
    ),
    'unknown_guidance_unit': (
        set_kwargs(guidance_unit='log'),
        ValueError,
        ['guidance_unit', "('logit', 'gradient')", "'log'"],
    ),
    'unknown_loss': (
        set_kwargs(loss_weights=dict(lhs=1.0)),
        ValueError,
        ['loss_weights', "'lsh'", "'lhs'"],
    ),
    'unknown_align': (
        set_kwargs(align=dict(kind='linear')),
        ValueError,
        ["'conv', 'mlp' or 'identity'", "'linear'"],
    ),
    'identity_align_of_unequal_channels': (
        set_kwargs(align=dict(kind='identity')),
        ValueError,
        ['student has 16', 'teacher 24', "kind='conv'"],
    ),
    'unknown_lsh_bias': (
        set_kwargs(lsh=dict(bias='average')),
        ValueError,
        ["'zero', 'mean' or 'median'", "'average'"],
    ),
    'adapter_without_a_graph': (
        set_kwargs(sampler=dict(noise='adapter'), detach=True),
        ValueError,
        ["noise='adapter'", 'detach=True', 'detach=False'],
    ),
    'unknown_noise': (
        set_kwargs(sampler=dict(noise='adaptive')),
        ValueError,
        ['noise', "'adaptive'", 'adapter'],
    ),
    'no_sampling_steps': (set_kwargs(sampler=dict(steps=0)), ValueError, ['steps >= 1', 'steps=0']),
    'more_sampling_than_training_steps': (
        set_kwargs(sampler=dict(steps=600)),
        ValueError,
        ['600 sampling steps', '20% of 1000', 'fewer steps'],
    ),
}


@pytest.mark.parametrize('name', AT_BUILD)
def test_a_wrong_config_is_refused_when_the_model_is_built(model: ConfigDict, name: str) -> None:
    spoil, error, words = AT_BUILD[name]
    spoil(model)
    with pytest.raises(error) as caught:
        MMENGINE_MODELS.build(model)
    assert_says(caught.value, words)


def other_architecture(path: Path) -> None:
    torch.save(dict(state_dict={'layer.weight': torch.zeros(2)}), path)


def other_number_of_classes(path: Path) -> None:
    checkpoint = torch.load(path)
    checkpoint['state_dict']['head.fc.weight'] = torch.zeros(7, 24)
    checkpoint['state_dict']['head.fc.bias'] = torch.zeros(7)
    torch.save(checkpoint, path)


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:5000])


def of_a_lost_upload(path: Path) -> None:
    path.write_bytes(b'')


def a_text(path: Path) -> None:
    path.write_text('version https://git-lfs.github.com/spec/v1\n')


def a_single_tensor(path: Path) -> None:
    torch.save(torch.zeros(2), path)


def without_weights(path: Path) -> None:
    torch.save(dict(meta=dict(epoch=3)), path)


def with_code(path: Path) -> None:
    torch.save(dict(state_dict=dict(CodeInAFile=CodeInAFile())), path)


def with_code_in_a_plain_pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(CodeInAFile()))


CHECKPOINTS: dict[str, Row] = {
    'missing': (Path.unlink, FileNotFoundError, ['Expected a checkpoint at', 'correct the path']),
    'other_architecture': (
        other_architecture,
        ValueError,
        ['does not fit the teacher (ImageClassifier)', '0 keys match', 'layer.weight', 'config and checkpoint belong together'],
    ),
    'other_number_of_classes': (
        other_number_of_classes,
        ValueError,
        ['head.fc.weight: (7, 24) in the checkpoint, (5, 24) in the model', 'number of classes'],
    ),
    'truncated': (truncated, ValueError, ['5000 bytes', 'truncated or damaged', 'Copy it again']),
    'empty': (of_a_lost_upload, ValueError, ['0 bytes', 'truncated or damaged']),
    'a_text': (a_text, ValueError, ['damaged or something else', 'Copy it again']),
    'a_single_tensor': (a_single_tensor, ValueError, ['Expected a dict', 'Tensor']),
    'without_weights': (without_weights, ValueError, ['Expected the weights of a model', "'meta'"]),
    'with_code': (with_code, ValueError, ['holds a print', 'could run code', 'If you trust']),
    # Newer torch says that it is no checkpoint of its own, the legacy one that it holds a print.
    'with_code_in_a_plain_pickle': (with_code_in_a_plain_pickle, ValueError, ['Expected ', 'checkpoint']),
}


@pytest.mark.filterwarnings('ignore:Detected pickle protocol')
@pytest.mark.parametrize('name', CHECKPOINTS)
def test_a_wrong_teacher_checkpoint_is_refused_in_the_first_step(
    model: ConfigDict, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil, error, words = CHECKPOINTS[name]
    path = Path(model.teacher.checkpoint)
    distiller = MMENGINE_MODELS.build(model)
    intact = path.read_bytes()
    spoil(path)
    with pytest.raises(error) as caught:
        distiller.loss(*random_batch())
    assert_says(caught.value, [str(path), *words])
    assert 'the code in the checkpoint ran' not in capsys.readouterr().out
    # Nothing is lost: with the file in order the same model trains.
    path.write_bytes(intact)
    assert 'loss_dskd_lsh' in distiller.loss(*random_batch())


def test_a_part_of_the_teacher_may_stay_random_on_request(model: ConfigDict) -> None:
    path = Path(model.teacher.checkpoint)
    checkpoint = torch.load(path)
    del checkpoint['state_dict']['head.fc.bias']
    torch.save(checkpoint, path)
    distiller = MMENGINE_MODELS.build(model)
    with pytest.raises(ValueError, match=r'1 missing \(head.fc.bias\).*strict=False'):
        distiller.loss(*random_batch())
    model.teacher.strict = False
    MMENGINE_MODELS.build(model).loss(*random_batch())


def tokens_as_feature(model: ConfigDict) -> None:
    model.student = classifier_config('vit')
    set_feature('backbone.layers.1')(model)


TAPS: dict[str, Row] = {
    'of_the_wrong_rank': (
        tokens_as_feature,
        ValueError,
        ["output of 'backbone.layers.1' in the student", '(B, 16, H, W) or (B, 16)', '(4, 17, 16)', 'Tap another module'],
    ),
    'of_a_layer': (
        add_layer(path='backbone.layer9'),
        ValueError,
        ['student (ImageClassifier)', "no module 'backbone.layer9'", "Did you mean 'backbone.layer"],
    ),
    'of_a_layer_of_other_channels': (
        add_layer(channels=24),
        ValueError,
        ["output of 'backbone.layer3' in the student", '(B, 24, H, W)', '(4, 16, 4, 4)', 'correct its channels'],
    ),
    'unknown': (
        set_feature('backbone.layr3'),
        ValueError,
        ['student (ImageClassifier)', "no module 'backbone.layr3'", "Did you mean 'backbone.layer3'", 'named_modules()'],
    ),
    'never_fires': (
        container_as_feature,
        RuntimeError,
        ["output of 'backbone.layers' in the student", 'never fired', 'tap one of their elements'],
    ),
    'other_channels': (
        set_feature('backbone.layer2', channels=16),
        ValueError,
        ["output of 'backbone.layer2' in the student", '(B, 16, H, W)', '(4, 8, 8, 8)', 'correct its channels'],
    ),
    'unknown_io': (set_feature('backbone', io='both'), ValueError, ["'input' or 'output'", "'both'"]),
    'unknown_index': (set_feature('backbone', index='first'), ValueError, ["a number, 'all' or None", "'first'"]),
    'index_out_of_range': (set_feature('backbone', index=3), RuntimeError, ['element 3', '1 elements']),
}


@pytest.mark.parametrize('name', TAPS)
def test_a_wrong_tap_is_refused_at_the_latest_in_the_first_step(model: ConfigDict, name: str) -> None:
    spoil, error, words = TAPS[name]
    spoil(model)
    with pytest.raises(error) as caught:
        MMENGINE_MODELS.build(model).loss(*random_batch())
    assert_says(caught.value, words)


def set_label(label: int) -> Spoil:
    return lambda batch: batch[1][2].set_gt_label(label).set_field('data/cat.png', 'img_path', field_type='metainfo')


def scores_over_other_classes(batch: list) -> None:
    for sample in batch[1]:
        sample.set_gt_score(torch.full((7,), 1 / 7))


def replace_images(change: Callable[[torch.Tensor], torch.Tensor]) -> Spoil:
    def spoil(batch: list) -> None:
        batch[0] = change(batch[0])

    return spoil


# name: (how the batch [images, samples] is spoiled, the error, what its message must say)
BATCHES: dict[str, Row] = {
    'label_below_0': (set_label(-1), ValueError, ['Sample 2 (data/cat.png) has the label [-1]', 'classes 0 to 4', 'correct']),
    'label_beyond_the_classes': (
        set_label(TOY_CLASSES),
        ValueError,
        ['Sample 2 (data/cat.png) has the label [5]', 'classes 0 to 4', 'num_classes'],
    ),
    'soft_label_over_other_classes': (
        scores_over_other_classes,
        ValueError,
        ['Sample 0 has a gt_score over 7 classes', 'teacher knows 5', 'num_classes'],
    ),
    'image_without_a_label': (
        lambda batch: batch[1][1].pop('gt_label'),
        ValueError,
        ['Sample 1 (image in memory)', 'annotated with gt_label', 'PackInputs'],
    ),
    'no_annotations': (
        lambda batch: batch.__setitem__(1, None),
        ValueError,
        ["Mode 'loss' expects data_samples", '4 images', 'None', "mode='predict'"],
    ),
    'fewer_annotations_than_images': (
        lambda batch: batch[1].pop(),
        ValueError,
        ['an annotation for each', '(4, 3, 16, 16) and 3 annotations', 'pipeline'],
    ),
    'images_of_no_size': (
        replace_images(lambda images: images[:, :, :0]),
        ValueError,
        ['at least one pixel', '(4, 3, 0, 16)', 'crops'],
    ),
    'images_without_a_batch': (replace_images(lambda images: images[0]), ValueError, ['(B, C, H, W)', '(3, 16, 16)']),
}


@pytest.mark.parametrize('name', BATCHES)
def test_a_wrong_batch_is_refused_and_leaves_no_trace(model: ConfigDict, name: str) -> None:
    spoil, error, words = BATCHES[name]
    distiller = MMENGINE_MODELS.build(model)
    images, samples = random_batch()
    distiller(images, samples, mode='loss')
    before = {key: value.clone() for key, value in distiller.state_dict().items() if not key.startswith('student.')}
    batch = [images, copy.deepcopy(samples)]
    spoil(batch)
    with pytest.raises(error) as caught:
        distiller(batch[0], batch[1], mode='loss')
    assert_says(caught.value, words)
    # The statistics of the distillation are as they were, and training may go on.
    assert all(torch.equal(distiller.state_dict()[key], value) for key, value in before.items())
    distiller(images, samples, mode='loss')


def twice_the_strides(model: ConfigDict) -> None:
    generator = model.student.bbox_head.anchor_generator
    generator.strides = [2 * stride for stride in generator.strides]


# name: (toy model, how the config is spoiled, the error, what its message must say)
DENSE_AT_BUILD: dict[str, tuple[str, Spoil, type[Exception], list[str]]] = {
    'unequal_strides': (
        'retinanet',
        twice_the_strides,
        ValueError,
        ['student makes 9 predictions', '(16, 16), (32, 32)', 'teacher 9 at ((8, 8)', 'same anchors and strides', 'NeckSite'],
    ),
    'unequal_anchors': (
        'retinanet',
        lambda model: model.student.bbox_head.anchor_generator.update(ratios=[1.0]),
        ValueError,
        ['student makes 3 predictions', 'teacher 9', 'same anchors'],
    ),
    'detectors_of_other_classes': (
        'retinanet',
        lambda model: model.student.bbox_head.update(num_classes=7),
        ValueError,
        ['student classifies 7 classes (bbox_head.retina_cls)', 'teacher 3', 'same classes'],
    ),
    'segmenters_of_other_classes': (
        'fcn',
        lambda model: model.student.decode_head.update(num_classes=7),
        ValueError,
        ['student classifies 7 classes (decode_head.conv_seg)', 'teacher 3', 'same classes'],
    ),
    'classification_layer_of_another_kind': (
        'fcn',
        lambda model: model.update(site=dict(classifier='decode_head.convs')),
        ValueError,
        ["student's classification layer 'decode_head.convs'", 'a convolution', 'Name another one'],
    ),
    'unknown_stage': (
        'cascade_rcnn',
        lambda model: model.update(site=dict(stage=7)),
        ValueError,
        ['stage of TwoStageDetectionSite expects one of the 3 stages', 'got 7'],
    ),
    'teacher_for_images': (
        'fcos',
        set_teacher(config=dict(model=classifier_config())),
        ValueError,
        ['teacher (ImageClassifier)', "no 'bbox_head' in its config", "'head'", 'another task'],
    ),
    'classifier_for_a_detector': (
        'fcos',
        lambda model: model.update(site=dict(type='dskd_mm.ClassificationSite')),
        ValueError,
        ['student (FCOS) has no head'],
    ),
}


@pytest.fixture(scope='module')
def dense_configs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ConfigDict]:
    made = {}
    for kind in ('retinanet', 'fcos', 'faster_rcnn', 'cascade_rcnn', 'fcn'):
        made[kind] = dense_distiller_config(kind, str(tmp_path_factory.mktemp(kind)))
    return made


@pytest.mark.parametrize('name', DENSE_AT_BUILD)
def test_a_wrong_config_of_a_dense_model_is_refused_when_it_is_built(dense_configs: dict[str, ConfigDict], name: str) -> None:
    kind, spoil, error, words = DENSE_AT_BUILD[name]
    model = copy.deepcopy(dense_configs[kind])
    spoil(model)
    with pytest.raises(error) as caught:
        MMENGINE_MODELS.build(model)
    assert_says(caught.value, words)


def relabel(label: int) -> Spoil:
    return lambda batch: batch['data_samples'][0].gt_instances.labels.fill_(label)


def forget(field: str) -> Spoil:
    return lambda batch: delattr(batch['data_samples'][0], field)


def recolour(label: int) -> Spoil:
    return lambda batch: batch['data_samples'][0].gt_sem_seg.data[..., :2, :2].fill_(label)


DENSE_BATCHES: dict[str, tuple[str, Spoil, type[Exception], list[str]]] = {
    'object_of_an_unknown_class': ('fcos', relabel(3), ValueError, ['Sample 0', 'labels [3]', 'classes 0 to 2', 'metainfo']),
    'object_of_a_negative_class': ('fcos', relabel(-1), ValueError, ['Sample 0', 'labels [-1]', 'classes 0 to 2']),
    # The class of the background, which annotations must not name.
    'object_that_is_background': ('faster_rcnn', relabel(3), ValueError, ['Sample 0', 'labels [3]', 'classes 0 to 2']),
    'image_without_boxes': ('faster_rcnn', forget('gt_instances'), ValueError, ['Sample 0', 'gt_instances', 'pipeline']),
    'pixel_of_an_unknown_class': (
        'fcn',
        recolour(9),
        ValueError,
        ['Sample 0', 'labels [9] in its label map', 'classes 0 to 2 and ignores 255', 'reduce_zero_label'],
    ),
    'image_without_a_label_map': ('fcn', forget('gt_sem_seg'), ValueError, ['Sample 0', 'gt_sem_seg', 'PackInputs']),
}


@pytest.mark.parametrize('name', DENSE_BATCHES)
def test_a_wrong_batch_of_a_dense_model_is_refused(dense_configs: dict[str, ConfigDict], name: str) -> None:
    kind, spoil, error, words = DENSE_BATCHES[name]
    distiller = build_distiller(copy.deepcopy(dense_configs[kind]))
    if kind == 'fcn':
        batch = segmentation_batch(distiller, torch.zeros(2, *DENSE_SIZE, dtype=torch.long))
    else:
        batch = detection_batch(distiller, [random_boxes(2), random_boxes(1, seed=1)])
    spoil(batch)
    with pytest.raises(error) as caught:
        distiller(**batch, mode='loss')
    assert_says(caught.value, words)


# -------------------------------------------------------------------------------------------- what the pre-flight check finds

FILES = ('a.png', 'b.png', 'c.png', 'd.png')


@pytest.fixture
def run(tmp_path: Path) -> Config:
    """The config of a whole run on images in files, for the cases to spoil."""
    cfg = distiller_run_config(str(tmp_path))
    (tmp_path / 'images').mkdir()
    for name in FILES:
        assert cv2.imwrite(str(tmp_path / 'images' / name), np.full((16, 16, 3), 90, np.uint8))
    write_labels(tmp_path, range(len(FILES)))
    dataset = dict(
        type='CustomDataset',
        data_root=str(tmp_path),
        data_prefix='images',
        ann_file='labels.txt',
        metainfo=dict(classes=list('abcde')),
        pipeline=[dict(type='LoadImageFromFile'), dict(type='PackInputs')],
    )
    for part in ('train', 'val', 'test'):
        cfg[f'{part}_dataloader'].dataset = dict(dataset, _delete_=True)
        cfg[f'{part}_dataloader'].dataset.pop('_delete_')
    return cfg


def write_labels(folder: Path, labels: Any) -> None:
    lines = [f'{name} {label}' for name, label in zip(FILES, labels, strict=True)]
    (folder / 'labels.txt').write_text('\n'.join(lines))


def set_all(**settings: Any) -> Callable[[Config, Path], None]:
    def spoil(cfg: Config, folder: Path) -> None:
        for part in ('train', 'val', 'test'):
            cfg[f'{part}_dataloader'].dataset.update(settings)

    return spoil


def set_config(**settings: Any) -> Callable[[Config, Path], None]:
    return lambda cfg, folder: cfg.merge_from_dict({key.replace('__', '.'): value for key, value in settings.items()})


def drop(*keys: str) -> Callable[[Config, Path], None]:
    return lambda cfg, folder: [cfg.pop(key) for key in keys]


def save_in(folder: Path, **content: Any) -> str:
    torch.save(content, folder / 'other.pth')
    return str(folder / 'other.pth')


def other_weights(cfg: Config, folder: Path) -> None:
    cfg.load_from = save_in(folder, state_dict={'layer.weight': torch.zeros(2)})


def other_backbone(cfg: Config, folder: Path) -> None:
    path = save_in(folder, state_dict={'layer.weight': torch.zeros(2)})
    cfg.model.student.backbone.init_cfg = dict(type='Pretrained', checkpoint=path)


def shorten_the_teacher(cfg: Config, folder: Path) -> None:
    path = Path(cfg.model.teacher.checkpoint)
    path.write_bytes(path.read_bytes()[:3000])


def teacher_without_its_bias(cfg: Config, folder: Path) -> None:
    content = torch.load(cfg.model.teacher.checkpoint, weights_only=True)
    del content['state_dict']['head.fc.bias']
    torch.save(content, cfg.model.teacher.checkpoint)


# name: (how the whole config and its files are spoiled, what is at fault, what the report must say)
REPORTED: dict[str, tuple[Callable[[Config, Path], Any], str, list[str]]] = {
    'no_data': (
        set_all(data_root='no/such/data'),
        'train_dataloader.dataset.data_root',
        ["Expected data at '", "no/such/data'", 'there is none', '--cfg-options train_dataloader.dataset.data_root=...'],
    ),
    'no_annotation_file': (
        set_all(ann_file='no-labels.txt'),
        'train_dataloader.dataset.ann_file',
        ['no-labels.txt', 'there is none', 'correct the path'],
    ),
    'no_image_folder': (
        set_all(data_prefix='picures'),
        'train_dataloader.dataset.data_prefix',
        ['picures', 'there is none', 'train_dataloader.dataset.data_root=...'],
    ),
    'a_missing_image': (
        lambda cfg, folder: (folder / 'images' / 'b.png').unlink(),
        'train_dataloader.dataset',
        ['an image in each file', '1 of 4 are missing', 'b.png'],
    ),
    'an_empty_image': (
        lambda cfg, folder: (folder / 'images' / 'c.png').write_bytes(b''),
        'train_dataloader.dataset',
        ['an image in each file', '1 of 4 are empty (0 bytes)', 'c.png'],
    ),
    'a_label_of_no_class': (
        lambda cfg, folder: write_labels(folder, [0, 1, 5, 9]),
        'train_dataloader.dataset',
        ['labels from 0 to 4', '[5, 9]', 'num_classes'],
    ),
    'an_empty_data_set': (
        lambda cfg, folder: (folder / 'labels.txt').write_text(''),
        'train_dataloader.dataset',
        ['Expected images', 'has none'],
    ),
    'more_classes_than_the_model_knows': (
        set_all(metainfo=dict(classes=list('abcdefg'))),
        'train_dataloader.dataset classes',
        ['at most the 5 classes', 'has 7', 'num_classes', 'metainfo'],
    ),
    'no_annotations_to_validate_by': (
        set_config(val_evaluator=dict(type='mmdet.CocoMetric', ann_file='no/val.json')),
        'val_evaluator.ann_file',
        ['no/val.json', '--cfg-options val_evaluator.ann_file=...'],
    ),
    'no_optimizer': (drop('optim_wrapper', 'train_cfg'), 'config', ["['train_cfg', 'optim_wrapper']", 'of a training']),
    'no_model': (drop('model'), 'config', ["['model']"]),
    'type_without_its_scope': (
        lambda cfg, folder: cfg.model.update(type='DSKDDistiller'),
        'model',
        ["nothing is under the name 'DSKDDistiller'", 'mmpretrain', 'Did you mean dskd_mm.DSKDDistiller'],
    ),
    'misspelt_type': (
        lambda cfg, folder: cfg.model.update(type='dskd_mm.DSKDistiller'),
        'model',
        ["name 'dskd_mm.DSKDistiller'", 'Did you mean dskd_mm.DSKDDistiller'],
    ),
    'misspelt_backbone': (
        lambda cfg, folder: cfg.model.student.backbone.update(type='dskd_mm.CifarResNet'),
        'model',
        ["name 'dskd_mm.CifarResNet'", 'dskd_mm.CIFARResNet'],
    ),
    'tap_of_the_student': (
        set_config(model__site=dict(feature=dict(path='backbone.layr3', channels=16))),
        "student's taps",
        ["no module 'backbone.layr3'", "'backbone.layer3'"],
    ),
    'tap_of_the_teacher': (
        set_config(model__site=dict(teacher_feature=dict(path='backbone.layr3', channels=24))),
        "teacher's taps",
        ['teacher (ImageClassifier)', "no module 'backbone.layr3'"],
    ),
    'teacher_not_trained_yet': (
        lambda cfg, folder: Path(cfg.model.teacher.checkpoint).unlink(),
        'teacher',
        ['Expected a checkpoint at', 'teacher.pth', 'Train the model first'],
    ),
    'teacher_truncated': (shorten_the_teacher, 'teacher', ['teacher.pth', '3000 bytes', 'truncated']),
    'teacher_incomplete': (
        teacher_without_its_bias,
        'teacher',
        ['every tensor of the teacher', '1 missing (head.fc.bias)', 'strict=False'],
    ),
    'weights_to_begin_with_of_another_model': (
        other_weights,
        'load_from',
        ['weights of a ImageClassifier', 'other.pth', '0 keys match', 'another architecture'],
    ),
    'pretrained_backbone_of_another_model': (
        other_backbone,
        'student.backbone.init_cfg',
        ['weights of a CIFARResNet', 'other.pth', '0 keys match'],
    ),
    'nothing_to_resume_from': (
        set_config(resume=True, load_from='work_dirs/no/epoch_3.pth'),
        'resume',
        ['Expected a checkpoint at', 'epoch_3.pth', 'correct the path'],
    ),
}


@pytest.mark.parametrize('name', REPORTED)
def test_a_mistake_is_reported_before_training(run: Config, tmp_path: Path, name: str) -> None:
    spoil, subject, words = REPORTED[name]
    spoil(run, tmp_path)
    report = check_config(run, CHEAP)
    found = [finding for finding in report.faults if finding.subject == subject]
    assert found, report.findings
    assert_says(found[0].text, words)


def test_the_config_that_is_spoilt_is_sound(run: Config) -> None:
    report = check_config(run, CHEAP)
    assert report.faults == []


def write_circle(folder: Path) -> None:
    (folder / 'config.py').write_text("_base_ = './config.py'\n")


def write_no_python(folder: Path) -> None:
    (folder / 'config.py').write_text('model = dict(\n')


def write_lost_base(folder: Path) -> None:
    (folder / 'config.py').write_text("_base_ = './lost.py'\n")


def write_unknown_import(folder: Path) -> None:
    (folder / 'config.py').write_text("custom_imports = dict(imports=['no_such_package'])\n")


CONFIG_FILES: dict[str, tuple[Callable[[Path], Any], list[str]]] = {
    'not_there': (lambda folder: None, ['Expected a config file at', 'config.py', 'relative to the']),
    'inherits_itself': (write_circle, ['inherits itself (_base_)']),
    'no_python': (write_no_python, ['cannot be read', 'SyntaxError']),
    'base_not_there': (write_lost_base, ['cannot be read', 'lost.py']),
    'imports_what_is_not_there': (write_unknown_import, ['cannot be read', 'no_such_package']),
}


@pytest.mark.parametrize('name', CONFIG_FILES)
def test_a_config_file_that_cannot_be_read_is_reported(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    write, words = CONFIG_FILES[name]
    write(tmp_path)
    with pytest.raises(SystemExit) as caught:
        run_script(ROOT / 'tools/misc/check_config.py', tmp_path / 'config.py')
    assert caught.value.code == 1
    # The table breaks the lines of its cells where it likes, within words, too.
    rows = [line.split('│') for line in capsys.readouterr().out.splitlines() if line.count('│') == 5]
    status, said = (re.sub(r'\s', '', ''.join(row[column] for row in rows)) for column in (3, 4))
    assert status == 'FAULT'
    assert_says(said, [re.sub(r'\s', '', word) for word in words])


def without(package: str) -> Callable[[pytest.MonkeyPatch], None]:
    return lambda patch: patch.setitem(sys.modules, package, None)


def of_version(package: str, version: str) -> Callable[[pytest.MonkeyPatch], None]:
    def spoil(patch: pytest.MonkeyPatch) -> None:
        other = ModuleType(package)
        other.__version__ = version  # type: ignore[attr-defined]
        other.__spec__ = sys.modules[package].__spec__
        patch.setitem(sys.modules, package, other)

    return spoil


def that_refuses_to_be_imported(patch: pytest.MonkeyPatch) -> None:
    def fail(name: str) -> Any:
        if name == 'mmpretrain':
            raise AssertionError('MMCV==3.0.0 is used but incompatible. Please install mmcv>=2.0.0rc4, <2.4.0.')
        return sys.modules[name]

    patch.setattr(environment.importlib, 'import_module', fail)


ENVIRONMENTS: dict[str, tuple[Callable[[pytest.MonkeyPatch], None], str, list[str]]] = {
    'host_absent': (
        without('mmpretrain'),
        'mmpretrain',
        ['Expected mmpretrain 1.2.0 or newer', 'not installed', "pip install 'dskd_mm[cls]'"],
    ),
    'mmcv_absent': (without('mmcv'), 'mmcv', ['Expected mmcv 2.0.1 or newer', 'not installed', 'openmmlab']),
    'host_too_old': (of_version('mmpretrain', '1.0.2'), 'mmpretrain', ['version 1.2.0 or newer', '1.0.2 is installed']),
    'mmengine_too_old': (of_version('mmengine', '0.7.4'), 'mmengine', ['version 0.10.7 or newer', '0.7.4 is installed']),
    'host_and_mmcv_do_not_fit': (
        that_refuses_to_be_imported,
        'mmpretrain',
        ['Expected mmpretrain to be importable', 'MMCV==3.0.0 is used but incompatible', 'Install what fits'],
    ),
}


@pytest.mark.parametrize('name', ENVIRONMENTS)
def test_an_environment_that_lacks_something_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    pytest.importorskip('mmpretrain')
    spoil, subject, words = ENVIRONMENTS[name]
    cfg = distiller_run_config(str(tmp_path))
    spoil(monkeypatch)
    report = check_config(cfg, ['environment'])
    (found,) = report.faults
    assert found.subject == subject
    assert_says(found.text, words)


def test_without_mmengine_the_package_says_what_to_install() -> None:
    """It cannot be told by a check of the package: nothing of it can be imported."""
    code = 'import importlib.util as util; util.find_spec = lambda name: None; import dskd_mm'
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 1
    assert_says(done.stderr, ['ImportError', 'dskd_mm needs mmengine and mmcv', "pip install 'dskd_mm[cls]'"])


def test_the_table_is_long_enough() -> None:
    tables = (AT_BUILD, CHECKPOINTS, TAPS, BATCHES, DENSE_AT_BUILD, DENSE_BATCHES, REPORTED, CONFIG_FILES, ENVIRONMENTS)
    assert sum(map(len, tables)) >= 100
