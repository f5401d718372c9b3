"""Where classifiers are found in mmpretrain's models, and what their targets are."""

import importlib.util
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from mmengine.registry import MODELS
from mmpretrain.models import ClsDataPreprocessor
from mmpretrain.structures import DataSample
from torch import nn
from torch.nn import functional as F
from torchvision.models import resnet18

from dskd_mm import distil, distillers
from dskd_mm.distillers import DSKDDistiller
from dskd_mm.sites import ClassificationSite, build_site
from dskd_mm.structures import TapRecord, TapSpec, Target
from dskd_mm.teacher import FrozenTeacher
from dskd_mm.testing import classifier_config, random_batch, random_teacher

DISTILLERS = [getattr(distillers, name) for name in distillers.__all__]
# Of models of width 4: classifier, module and side of the feature, its channels, whether it is a map, whether sigmoid.
SPECS = {
    'gap': ('head.fc', 'neck', 16, True, False),
    'stacked': ('head.layers.2.fc', 'head.layers.2.fc', 12, False, False),
    'vit': ('head.layers.head', 'head.layers.head', 16, False, False),
    'vit_hidden': ('head.layers.head', 'head.layers.head', 12, False, False),
    'vit_avg': ('head.fc', 'head.fc', 16, False, False),
    'swin': ('head.fc', 'neck', 32, True, False),
    'multi_label': ('head.fc', 'neck', 16, True, True),
}


def checked_spec(num_labels: int = 5) -> TapSpec:
    """What annotations are checked against."""
    return TapSpec('head', ('head.fc',), False, num_labels, ('head.fc',), 'input', 8, num_labels=num_labels)


def build_head(**config) -> nn.Module:
    return MODELS.build(dict(_scope_='mmpretrain', **config))


def teacher_of(head: dict) -> FrozenTeacher:
    """A teacher of which only the head could be built, and nothing be loaded."""
    model = dict(type='ImageClassifier', _scope_='mmpretrain', backbone=dict(type='NoSuchBackbone'), head=head)
    return FrozenTeacher(dict(model=model), '/nowhere/teacher.pth')


def seen_logits(batch: int, num_classes: int) -> SimpleNamespace:
    """As much of an observation of the student as the targets of images need."""
    return SimpleNamespace(logits=[torch.zeros(batch, num_classes)])


@pytest.mark.parametrize('kind', SPECS)
def test_classifier_and_feature_are_found(kind):
    model = MODELS.build(classifier_config(kind))
    spec = ClassificationSite().student_spec(model)
    (classifier,), (feature,) = spec.classifiers, spec.features
    assert (classifier, feature, spec.channels, spec.is_map, spec.sigmoid) == SPECS[kind]
    assert spec.io == 'input'
    assert spec.is_pooled == spec.is_map
    assert (spec.part, spec.num_classes, spec.num_priors, spec.is_pyramid) == ('head', 5, 1, False)


@pytest.mark.parametrize(
    ('loss', 'independent'),
    [
        (dict(type='CrossEntropyLoss'), False),
        (dict(type='CrossEntropyLoss', use_sigmoid=True), True),
        (dict(type='LabelSmoothLoss', label_smooth_val=0.1), False),
        (dict(type='LabelSmoothLoss', label_smooth_val=0.1, mode='multi_label'), True),
        (dict(type='LabelSmoothLoss', label_smooth_val=0.1, use_sigmoid=True), True),  # as mmpretrain's rsb-a1
    ],
)
def test_the_loss_tells_whether_classes_are_independent(loss, independent):
    config = classifier_config('gap')
    config.head.loss = loss
    assert ClassificationSite().student_spec(MODELS.build(config)).sigmoid is independent
    teacher = teacher_of(dict(type='LinearClsHead', num_classes=5, in_channels=16, loss=loss))
    assert ClassificationSite().teacher_spec(None, teacher).sigmoid is independent


@pytest.mark.parametrize('kind', SPECS)
def test_the_logits_are_the_classifier_on_the_tapped_feature(kind):
    model = MODELS.build(classifier_config(kind)).eval()
    spec = ClassificationSite().student_spec(model)
    (path,) = spec.classifiers
    layer = model.get_submodule(path)
    with torch.no_grad(), TapRecord(model, spec, 'student') as seen:
        logits = model(random_batch()[0])
        ((feature,), (tapped,)) = seen.features, seen.logits
    assert feature.shape[:2] == (4, spec.channels)
    # Vectors come as maps of a single location.
    assert feature.ndim == 4
    assert (feature.shape[2:] != (1, 1)) == spec.is_map
    torch.testing.assert_close(F.linear(feature.flatten(2).mean(dim=2), layer.weight, layer.bias), logits)
    assert torch.equal(tapped, logits)


@pytest.mark.parametrize('kind', SPECS)
def test_a_teacher_is_understood_from_its_head_alone(kind):
    config = classifier_config(kind)
    spec = ClassificationSite().teacher_spec(None, teacher_of(config.head))
    classifier, _, channels, _, sigmoid = SPECS[kind]
    assert (spec.classifiers, spec.channels, spec.sigmoid) == ((classifier,), channels, sigmoid)
    assert (spec.part, spec.num_classes) == ('head', 5)
    # With the whole model there, it is where a student of the same kind is tapped.
    model = MODELS.build(config)
    assert ClassificationSite().teacher_spec(model, teacher_of(config.head)) == ClassificationSite().student_spec(model)


def test_the_last_level_of_several_is_the_feature():
    config = classifier_config('gap')
    config.backbone.out_indices = (0, 2)
    model = MODELS.build(config).eval()
    spec = ClassificationSite().student_spec(model)
    with torch.no_grad(), TapRecord(model, spec, 'student') as seen:
        model(random_batch()[0])
        assert [level.shape for level in seen.features] == [(4, 16, 4, 4)]


def test_other_poolings_leave_the_classifiers_own_input():
    config = classifier_config('gap')
    config.neck = dict(type='GeneralizedMeanPooling')
    spec = ClassificationSite().student_spec(MODELS.build(config))
    assert (spec.features, spec.is_map) == (('head.fc',), False)


@pytest.mark.parametrize(
    ('head', 'message'),
    [
        (dict(type='ClsHead'), r"logits of the student's CIFARResNet .* are expected to be the output of one linear layer"),
        (
            dict(type='DeiTClsHead', num_classes=5, in_channels=8),
            r"2 of them: \['layers.head', 'layers.head_dist'\]. Name .* site=dict\(classifier='head....'\)",
        ),
        (dict(type='StackedLinearClsHead', num_classes=5, in_channels=8, mid_channels=[5]), '2 of them'),
        (dict(type='ArcFaceClsHead', num_classes=5, in_channels=8), 'ArcFaceClsHead'),
    ],
    ids=['none', 'class and distillation token', 'hidden layer as wide', 'normalised'],
)
def test_no_classifier_or_several_are_a_clear_error(head, message):
    config = classifier_config('gap')
    model = MODELS.build(config)
    model.head = build_head(**head)
    with pytest.raises(ValueError, match=message):
        ClassificationSite().student_spec(model)


def test_the_error_about_a_teacher_names_its_own_argument():
    teacher = teacher_of(dict(type='DeiTClsHead', num_classes=5, in_channels=8))
    with pytest.raises(ValueError, match=r"The teacher's head.*site=dict\(teacher_classifier="):
        ClassificationSite().teacher_spec(None, teacher)


def test_a_named_classifier_settles_it():
    teacher = teacher_of(dict(type='DeiTClsHead', num_classes=5, in_channels=8))
    site = ClassificationSite(teacher_classifier='head.layers.head_dist')
    assert site.teacher_spec(None, teacher).classifiers == ('head.layers.head_dist',)


@pytest.mark.parametrize(
    ('path', 'message'),
    [
        ('head.fcs', "student's head .*no module 'fcs'.*'fc'"),
        ('head.loss_module', "'head.loss_module' is expected to be a linear layer"),
    ],
)
def test_a_wrongly_named_classifier_is_refused(path, message):
    model = MODELS.build(classifier_config('gap'))
    with pytest.raises(ValueError, match=message):
        ClassificationSite(classifier=path).student_spec(model)


def test_a_model_without_head_is_refused_with_what_to_do_instead():
    with pytest.raises(ValueError, match=r'has no head.*mmpretrain\.TIMMBackbone'):
        ClassificationSite().student_spec(nn.Linear(2, 2))


def test_a_bare_network_is_refused_with_a_config_that_works(tmp_path):
    network, teacher = resnet18(num_classes=10), random_teacher(str(tmp_path), num_classes=10)
    with pytest.raises(TypeError, match=r'got a bare torchvision\.models\.resnet\.ResNet') as caught:
        DSKDDistiller(student=network, teacher=teacher)
    config, backbone = re.search(r'such a model: (dict.*), or with backbone=(dict.*), which', str(caught.value)).groups()
    config = eval(config)
    if importlib.util.find_spec('timm'):
        assert ClassificationSite().student_spec(MODELS.build(config)).features == ('neck',)
    config['backbone'] = eval(backbone)
    distiller = DSKDDistiller(student=config, teacher=teacher)
    found = distiller.student.backbone.load_state_dict(network.state_dict(), strict=False)
    assert found.missing_keys == [] and found.unexpected_keys == ['fc.weight', 'fc.bias']
    assert distiller.student_spec.features == ('neck',)


@pytest.mark.parametrize('method', DISTILLERS)
def test_a_bare_network_is_refused_before_a_teacher_is_missed(method):
    with pytest.raises(TypeError, match=r'dskd_mm\.distil\(student, teacher\) \(docs/en/pytorch\.md\)'):
        method(student=resnet18(num_classes=10))
    with pytest.raises(TypeError, match=r'dskd_mm\.distil\(student, teacher\)'):
        method(resnet18(num_classes=10))
    distiller = distil(resnet18(num_classes=3), resnet18(num_classes=3))
    assert torch.isfinite(distiller(torch.randn(2, 3, 32, 32), torch.tensor([0, 2])))


def test_a_feature_of_ones_own_is_tapped():
    model = MODELS.build(classifier_config('gap'))
    spec = ClassificationSite(feature=dict(path='backbone.layer2', channels=8)).student_spec(model)
    assert (spec.features, spec.io, spec.channels) == (('backbone.layer2',), 'output', 8)
    assert (spec.is_map, spec.is_pooled) == (True, False)


@pytest.mark.parametrize('feature', [dict(path='neck'), dict(channels=4), dict(path='neck', channels=4, layer=1)])
def test_an_incomplete_feature_is_refused(feature):
    model = MODELS.build(classifier_config('gap'))
    with pytest.raises(ValueError, match=r'student expects dict\(path=..., channels=...'):
        ClassificationSite(feature=feature).student_spec(model)


def test_a_feature_of_several_levels_is_refused():
    model = MODELS.build(classifier_config('gap'))
    with pytest.raises(ValueError, match=r"at one map, but the index of the student's feature is 'all'"):
        ClassificationSite(feature=dict(path='backbone', channels=16, index='all')).student_spec(model)


def test_a_teachers_feature_needs_the_width_of_its_classifier():
    teacher = teacher_of(classifier_config('gap').head)
    with pytest.raises(ValueError, match=r"'backbone.layer2' has 8 channels, but its classifier 'head.fc'.* takes 16"):
        ClassificationSite(teacher_feature=dict(path='backbone.layer2', channels=8)).teacher_spec(None, teacher)


def samples(*labels) -> list[DataSample]:
    return [DataSample().set_gt_label(label) for label in labels]


def test_single_labels_become_one_hot():
    target = ClassificationSite().target(seen_logits(2, 4), samples(2, 0), 4, False)
    assert target.probability.tolist() == [[0, 0, 1, 0], [1, 0, 0, 0]]
    assert target.probability.dtype == torch.float32
    assert target.weight is None
    assert target.avg_factor is None
    assert target.focus == 0


def test_several_labels_become_multi_hot_and_none_is_none():
    labels = samples([1, 3], [0], torch.tensor([], dtype=torch.long))
    target = ClassificationSite().target(seen_logits(3, 4), labels, 4, True)
    assert target.probability.tolist() == [[0, 1, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize('augment', ['Mixup', 'CutMix'])
def test_mixed_images_have_mixed_targets(augment):
    """Through mmpretrain's own preprocessor: gt_score is set beside the original label."""
    torch.manual_seed(0)
    np.random.seed(0)  # the box that CutMix pastes may be empty
    preprocessor = ClsDataPreprocessor(num_classes=5, batch_augments=dict(augments=dict(type=augment, alpha=0.8)))
    data = dict(inputs=torch.rand(4, 3, 8, 8), data_samples=samples(0, 1, 2, 3))
    mixed = preprocessor(data, training=True)['data_samples']
    site = ClassificationSite()
    site.check(mixed, checked_spec())
    target = site.target(seen_logits(4, 5), mixed, 5, False).probability
    torch.testing.assert_close(target, torch.stack([sample.gt_score for sample in mixed]))
    torch.testing.assert_close(target.sum(dim=1), torch.ones(4))
    assert ((target > 0).sum(dim=1) == 2).any()


@pytest.mark.parametrize('label', [5, -1, [0, 7]])
def test_a_label_outside_the_classes_is_named(label):
    bad = DataSample(metainfo=dict(img_path='cat.png')).set_gt_label(label)
    with pytest.raises(ValueError, match=r'Sample 1 \(cat.png\) has the label .*classes 0 to 4'):
        ClassificationSite().check([*samples(4), bad], checked_spec())


def test_a_score_over_other_classes_is_refused():
    sample = DataSample().set_gt_label(0).set_gt_score(torch.ones(3) / 3)
    with pytest.raises(ValueError, match='Sample 0 has a gt_score over 3 classes, but the teacher knows 5'):
        ClassificationSite().check([sample], checked_spec())


def test_vectors_are_averages_or_single_locations():
    feature, other = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    target, generator = Target(torch.eye(3)[:2]), torch.Generator().manual_seed(0)
    packed = [feature.flatten(2), other.flatten(2)]
    for site in (ClassificationSite(), ClassificationSite(dense=True)):
        vectors, weight = site.hash_vectors(packed, target, generator)
        assert weight is None
        for vector, value in zip(vectors, (feature, other), strict=True):
            if site.dense:
                assert vector.shape == (40, 3)
                torch.testing.assert_close(vector[20 + 5 * 2 + 3], value[1, :, 2, 3])
            else:
                torch.testing.assert_close(vector, value.flatten(2).mean(dim=2))
    assert torch.equal(generator.get_state(), torch.Generator().manual_seed(0).get_state()), 'no choice, no random numbers'


def test_a_classifier_of_mmpretrain_gets_its_site_by_itself():
    model = MODELS.build(classifier_config('gap'))
    assert isinstance(build_site(None, model), ClassificationSite)
    assert build_site(dict(dense=True), model).dense
    assert build_site(dict(type='dskd_mm.ClassificationSite', dense=True), model).dense
    site = ClassificationSite()
    assert build_site(site, model) is site


def test_a_student_of_an_unknown_kind_needs_a_named_site():
    with pytest.raises(TypeError, match=r'No site is known for the student torch.Linear.*site=dict\(type='):
        build_site(None, nn.Linear(2, 2))
    assert isinstance(build_site(dict(type='dskd_mm.ClassificationSite'), nn.Linear(2, 2)), ClassificationSite)
