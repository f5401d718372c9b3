"""What a user does wrong, and what is said about it: what was expected, what came, and how to mend it."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.registry import MODELS as MMENGINE_MODELS

from dskd_mm.testing import TOY_CLASSES, classifier_config, random_batch, random_teacher


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


# name: (how the config is spoiled, the error, what its message must say)
AT_BUILD: dict[str, tuple[Callable[[ConfigDict], Any], type[Exception], list[str]]] = {
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
        ['600 sampling steps', '50% of 1000', 'fewer steps'],
    ),
}


@pytest.mark.parametrize('name', AT_BUILD)
def test_a_wrong_config_is_refused_when_the_model_is_built(model: ConfigDict, name: str) -> None:
    spoil, error, words = AT_BUILD[name]
    spoil(model)
    with pytest.raises(error) as caught:
        MMENGINE_MODELS.build(model)
    message = str(caught.value)
    assert [word for word in words if word not in message] == [], message


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


CHECKPOINTS: dict[str, tuple[Callable[[Path], None], type[Exception], list[str]]] = {
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
    message = str(caught.value)
    assert [word for word in [str(path), *words] if word not in message] == [], message
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


TAPS: dict[str, tuple[Callable[[ConfigDict], Any], type[Exception], list[str]]] = {
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
    message = str(caught.value)
    assert [word for word in words if word not in message] == [], message


@pytest.mark.parametrize('label', [-1, TOY_CLASSES])
def test_a_label_outside_the_classes(model: ConfigDict, label: int) -> None:
    distiller = MMENGINE_MODELS.build(model)
    images, samples = random_batch()
    samples[2].set_gt_label(label).set_field('data/cat.png', 'img_path', field_type='metainfo')
    with pytest.raises(ValueError, match=rf'Sample 2 \(data/cat.png\) has the label \[{label}\].*classes 0 to 4.*correct'):
        distiller.loss(images, samples)
    samples[2].set_gt_label(1)
    distiller.loss(images, samples)


def test_a_soft_label_over_other_classes(model: ConfigDict) -> None:
    distiller = MMENGINE_MODELS.build(model)
    images, samples = random_batch()
    for sample in samples:
        sample.set_gt_score(torch.full((7,), 1 / 7))
    with pytest.raises(ValueError, match=r'Sample 0 has a gt_score over 7 classes.*teacher knows 5.*num_classes'):
        distiller.loss(images, samples)


def test_no_annotations_at_all(model: ConfigDict) -> None:
    distiller = MMENGINE_MODELS.build(model)
    with pytest.raises(ValueError, match=r"Mode 'loss' expects data_samples.*4 images.*None.*mode='predict'"):
        distiller(random_batch()[0], mode='loss')


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_features_that_are_not_finite(model: ConfigDict, value: float) -> None:
    distiller = MMENGINE_MODELS.build(model)
    images, samples = random_batch()
    distiller.loss(images, samples)
    before = {key: value.clone() for key, value in distiller.state_dict().items() if not key.startswith('student.')}
    spoilt = images.clone()
    spoilt[1, 0, 0, 0] = value
    with pytest.raises(FloatingPointError, match=r"'neck' in the student.*NaN or infinite at iteration 1.*learning rate"):
        distiller.loss(spoilt, samples)
    # The statistics of the distillation are as they were.
    assert all(torch.equal(distiller.state_dict()[key], value) for key, value in before.items())
