"""The frozen teacher: loaded with care, owned by nobody, fed with its own normalisation."""

import copy
from collections.abc import Sequence

import pytest
import torch
from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement
from mmpretrain.models import ClsDataPreprocessor
from torch import nn

from dskd_mm.structures import TapSpec
from dskd_mm.teacher import FrozenTeacher, InputAdapter
from dskd_mm.testing import random_teacher

CPU = torch.device('cpu')


def load(
    teacher: FrozenTeacher,
    full: bool,
    classifiers: Sequence[str] = ('head.fc',),
    part: str = 'head',
    sigmoid: bool = False,
) -> FrozenTeacher:
    preprocessor = ClsDataPreprocessor(mean=[120.0, 110.0, 100.0], std=[60.0, 62.0, 64.0], to_rgb=True)
    spec = TapSpec(part, tuple(classifiers), sigmoid, 5, tuple(classifiers), 'input', 24)
    teacher.load(spec, CPU, full, preprocessor)
    return teacher


def edit(path: str, change) -> None:
    """Apply a function to the state dict of a checkpoint."""
    checkpoint = torch.load(path)
    checkpoint['state_dict'] = change(checkpoint['state_dict'])
    torch.save(checkpoint, path)


@pytest.fixture
def arguments(tmp_path) -> dict:
    """Config and checkpoint of a teacher of width 6 (24 channels) for 5 classes."""
    return random_teacher(str(tmp_path))


def test_nothing_is_loaded_before_it_is_asked_for(arguments):
    teacher = FrozenTeacher(arguments['config'], '/nowhere/teacher.pth')
    assert not teacher.is_loaded
    assert teacher.build_part('head').fc.weight.shape == (5, 24)
    with pytest.raises(FileNotFoundError, match=r'/nowhere/teacher\.pth'):
        load(teacher, full=True)
    assert not teacher.is_loaded


def test_the_classifier_alone_is_loaded_without_the_backbone(arguments):
    arguments['config']['model']['backbone'] = dict(type='NoSuchBackbone')
    teacher = load(FrozenTeacher(**arguments), full=False)
    weights = torch.load(arguments['checkpoint'])['state_dict']
    (classifier,) = teacher.classifiers
    assert torch.equal(classifier.weight, weights['head.fc.weight'])
    assert torch.equal(classifier.bias, weights['head.fc.bias'])
    assert teacher.model is None
    with pytest.raises(RuntimeError, match='without its backbone'):
        teacher(torch.randn(1, 3, 16, 16))


def test_the_whole_teacher_predicts_as_the_model_it_was(arguments):
    model = MODELS.build(arguments['config']['model'])
    model.load_state_dict(torch.load(arguments['checkpoint'])['state_dict'])
    teacher = load(FrozenTeacher(**arguments), full=True)
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(teacher(images), model.eval()(images))


def test_the_teacher_is_frozen_and_its_tensors_may_enter_training(arguments):
    teacher = load(FrozenTeacher(**arguments), full=True)
    assert not teacher.model.training
    assert not any(p.requires_grad for p in teacher.model.parameters())
    before = copy.deepcopy(teacher.model.state_dict())
    logits = teacher(torch.randn(2, 3, 16, 16, requires_grad=True))
    assert not logits.requires_grad
    assert not logits.is_inference()
    torch.testing.assert_close(teacher.model.state_dict(), before, rtol=0, atol=0)


def test_it_is_no_module_and_copies_share_it(arguments):
    teacher = load(FrozenTeacher(**arguments), full=True)
    holder = nn.Linear(2, 2)
    holder.teacher = teacher
    assert set(holder.state_dict()) == {'weight', 'bias'}
    assert len(list(holder.modules())) == 1
    assert copy.deepcopy(holder).teacher is teacher


def test_it_follows_a_cast(arguments):
    teacher = load(FrozenTeacher(**arguments), full=True)
    teacher.apply_to_tensors(lambda tensor: tensor.double() if tensor.is_floating_point() else tensor)
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    assert teacher(images).dtype == torch.float64
    assert [classifier.weight.dtype for classifier in teacher.classifiers] == [torch.float64]


@pytest.mark.parametrize('prefix', ['module.', 'student.', 'module.student.'])
def test_checkpoints_of_wrapped_and_distilled_models_are_read(arguments, prefix):
    expected = torch.load(arguments['checkpoint'])['state_dict']['head.fc.weight']

    def wrap(state):
        others = {} if prefix == 'module.' else {'align.layers.0.weight': torch.zeros(1)}
        return {**{prefix + key: value for key, value in state.items()}, **others}

    edit(arguments['checkpoint'], wrap)
    teacher = load(FrozenTeacher(**arguments), full=True)
    (classifier,) = teacher.classifiers
    assert torch.equal(classifier.weight, expected)


@pytest.mark.parametrize('full', [True, False])
def test_a_missing_tensor_is_an_error_unless_allowed(arguments, full):
    edit(arguments['checkpoint'], lambda state: {k: v for k, v in state.items() if k != 'head.fc.bias'})
    with pytest.raises(ValueError, match=r'does not fit.*1 missing \(head.fc.bias\)' if full else r'1 missing \(fc.bias\)'):
        load(FrozenTeacher(**arguments), full)
    assert load(FrozenTeacher(**arguments, strict=False), full).is_loaded


def test_a_tensor_of_another_shape_is_named_with_both(arguments):
    edit(arguments['checkpoint'], lambda state: {**state, 'head.fc.bias': torch.zeros(7)})
    with pytest.raises(ValueError, match=r'head.fc.bias: \(7,\) in the checkpoint, \(5,\) in the model'):
        load(FrozenTeacher(**arguments), full=True)


@pytest.mark.parametrize('full', [True, False])
def test_a_checkpoint_that_matches_nothing_is_refused_even_if_not_strict(arguments, full):
    edit(arguments['checkpoint'], lambda state: {f'encoder.{k}': v for k, v in state.items()})
    with pytest.raises(ValueError, match='0 keys match'):
        load(FrozenTeacher(**arguments, strict=False), full)


def test_a_truncated_checkpoint_is_refused(arguments):
    with open(arguments['checkpoint'], 'r+b') as file:
        file.truncate(1000)
    with pytest.raises(ValueError, match=r'\(1000 bytes\) is truncated or damaged'):
        load(FrozenTeacher(**arguments), full=True)


@pytest.mark.parametrize('checkpoint', [None, dict(path='teacher.pth')])
def test_a_checkpoint_must_be_a_path(arguments, checkpoint):
    with pytest.raises(TypeError, match='path or address'):
        FrozenTeacher(arguments['config'], checkpoint)


def test_the_config_of_a_distiller_stands_for_its_student(arguments):
    student, other = arguments['config']['model'], dict(config='a', checkpoint='b')
    config = dict(model=dict(type='dskd_mm.DSKDDistiller', student=student, teacher=other))
    teacher = load(FrozenTeacher(config, arguments['checkpoint']), full=True)
    assert type(teacher.model).__name__ == 'ImageClassifier'


def test_position_embeddings_are_resized_as_the_host_does(tmp_path):
    arguments = random_teacher(str(tmp_path), kind='vit', image_size=16)
    arguments['config']['model']['backbone']['img_size'] = 32
    teacher = load(FrozenTeacher(**arguments), full=True, classifiers=['head.layers.head'])
    assert teacher.model.backbone.pos_embed.shape[1] == 1 + 8 * 8


def test_a_config_without_a_model_is_refused():
    with pytest.raises(ValueError, match=r"Expected a config with a model.*\['train_cfg'\]"):
        FrozenTeacher(dict(train_cfg=dict()), 'teacher.pth')


def test_a_part_that_is_not_there_is_named(arguments):
    with pytest.raises(ValueError, match=r"has no 'roi_head\.bbox_head' in its config.*another task"):
        FrozenTeacher(**arguments).build_part('roi_head.bbox_head')


def normalised(raw: torch.Tensor, **settings) -> torch.Tensor:
    """What a host makes of raw BGR images of 0 to 255."""
    return ClsDataPreprocessor(**settings)(dict(inputs=raw), training=False)['inputs'].float()


NORMALISATIONS = [
    dict(mean=[120.0, 110.0, 100.0], std=[60.0, 62.0, 64.0], to_rgb=True),
    dict(mean=[104.0, 117.0, 123.0], std=[1.0, 1.0, 1.0], to_rgb=False),
    dict(mean=[127.5, 127.5, 127.5], std=[127.5, 127.5, 127.5], to_rgb=True),
    dict(mean=[100, 110, 120], std=[50, 51, 52], to_rgb=False),
    dict(to_rgb=True),
    dict(),
]


@pytest.mark.parametrize('teacher', NORMALISATIONS)
@pytest.mark.parametrize('student', NORMALISATIONS)
def test_images_normalised_for_the_student_become_those_of_the_teacher(student, teacher):
    raw = torch.randint(0, 256, (2, 3, 4, 4), generator=torch.Generator().manual_seed(0)).float()
    adapter = InputAdapter(ClsDataPreprocessor(**student), ClsDataPreprocessor(**teacher))
    images = normalised(raw, **student)
    torch.testing.assert_close(adapter(images), normalised(raw, **teacher), rtol=1e-5, atol=1e-3)
    assert (adapter(images) is images) == (student == teacher)


def test_grey_images_are_adapted():
    student, teacher = ClsDataPreprocessor(mean=[72.0], std=[90.0]), ClsDataPreprocessor(mean=[127.5], std=[127.5])
    raw = torch.randint(0, 256, (2, 1, 4, 4)).float()
    adapted = InputAdapter(student, teacher)((raw - 72) / 90)
    torch.testing.assert_close(adapted, (raw - 127.5) / 127.5, rtol=1e-5, atol=1e-5)


class OldSegDataPreProcessor(nn.Module):
    """As that of mmsegmentation 1.2.2, which calls its flag ``channel_conversion``."""

    def __init__(self, mean, std, bgr_to_rgb) -> None:
        super().__init__()
        self.channel_conversion = bgr_to_rgb
        self.register_buffer('mean', torch.tensor(mean).view(-1, 1, 1), False)
        self.register_buffer('std', torch.tensor(std).view(-1, 1, 1), False)

    def forward(self, data, training=False):
        inputs = [image[[2, 1, 0]] if self.channel_conversion else image for image in data['inputs']]
        return dict(data, inputs=torch.stack([(image.float() - self.mean) / self.std for image in inputs]))


def preprocessor(host: str, rgb: bool, mean: float) -> nn.Module:
    """The data preprocessor of a host, by the name of its class."""
    settings = dict(mean=[mean, mean + 10, mean + 20], std=[60.0, 62.0, 64.0])
    if host == 'mmsegmentation 1.2.2':
        return OldSegDataPreProcessor(**settings, bgr_to_rgb=rgb)
    if host == 'mmpretrain.ClsDataPreprocessor':
        return ClsDataPreprocessor(**settings, to_rgb=rgb)
    pytest.importorskip(host.split('.')[0])
    padding = {'mmdet.DetDataPreprocessor': dict(pad_size_divisor=64), 'mmseg.SegDataPreProcessor': {}}
    tested = dict(test_cfg=dict(size_divisor=64)) if host.startswith('mmseg') else {}
    return MODELS.build(dict(type=host, _scope_=host.split('.')[0], bgr_to_rgb=rgb, **settings, **padding[host], **tested))


HOSTS = ['mmdet.DetDataPreprocessor', 'mmseg.SegDataPreProcessor', 'mmpretrain.ClsDataPreprocessor', 'mmsegmentation 1.2.2']


@pytest.mark.parametrize(('student_rgb', 'teacher_rgb'), [(False, True), (True, False), (True, True)])
@pytest.mark.parametrize('host', HOSTS)
def test_channels_are_swapped_whatever_the_host_calls_it(host, student_rgb, teacher_rgb):
    student, teacher = preprocessor(host, student_rgb, 100.0), preprocessor(HOSTS[2], teacher_rgb, 90.0)
    raw = [torch.randint(0, 256, (3, 64, 64)).float()]
    for one, other in ((student, teacher), (teacher, student)):
        # With annotations: mmseg pads images in testing by their sizes.
        images, expected = (p(dict(inputs=raw, data_samples=[BaseDataElement()]), False)['inputs'] for p in (one, other))
        torch.testing.assert_close(InputAdapter(one, other)(images), expected, rtol=1e-5, atol=1e-5)


class Grey(ClsDataPreprocessor):
    """Averages colours."""

    def forward(self, data, training=False):
        made = super().forward(data, training)
        return dict(made, inputs=made['inputs'].mean(dim=1, keepdim=True).expand(-1, 3, -1, -1))


class Clipped(ClsDataPreprocessor):
    """Cuts off what is bright."""

    def forward(self, data, training=False):
        made = super().forward(data, training)
        return dict(made, inputs=made['inputs'].clamp(max=100))


@pytest.mark.parametrize('kind', [Grey, Clipped])
def test_a_preprocessor_that_does_more_is_refused_and_a_plain_one_is_not(kind):
    plain = ClsDataPreprocessor()
    with pytest.raises(ValueError, match=f"teacher's data preprocessor .{kind.__name__}.*ImgDataPreprocessor"):
        InputAdapter(plain, kind())
    with pytest.raises(ValueError, match="The student's"):
        InputAdapter(kind(), plain)
    settings = dict(type='ImgDataPreprocessor', mean=[1.0, 2.0, 3.0], std=[2.0, 2.0, 4.0], bgr_to_rgb=True)
    images = torch.rand(2, 3, 4, 4)
    expected = (images.flip(1) - torch.tensor([1.0, 2.0, 3.0])[:, None, None]) / torch.tensor([2.0, 2.0, 4.0])[:, None, None]
    torch.testing.assert_close(InputAdapter(plain, MODELS.build(settings))(images), expected)


def test_normalisations_are_compared_whatever_the_default_device_is():
    plain, scaled = (ClsDataPreprocessor(mean=[120.0, 110.0, 100.0], std=[std] * 3, to_rgb=True) for std in (60.0, 30.0))
    with torch.device('meta'):
        adapter = InputAdapter(plain, scaled)
    assert adapter.scale.flatten().tolist() == [2.0] and not adapter.reorders
