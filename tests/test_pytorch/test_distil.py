"""Plain modules are distilled in an ordinary training loop, and stay what they are."""

import copy
import io
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import dskd_mm
from dskd_mm.pytorch import NetworkDistiller
from dskd_mm.pytorch.probe import examine
from dskd_mm.utils.methods import methods, suits

CLASSES = 5
DENSE_ONLY = {'crosskd', 'cwd', 'pkd'}


class Net(nn.Module):
    """Three stages, averaged by a function, then dropout and a linear layer."""

    def __init__(self, width: int = 4, classes: int = CLASSES) -> None:
        super().__init__()
        self.stage1, self.stage2, self.stage3 = (
            nn.Sequential(nn.Conv2d(i, o, 3, 2, 1, bias=False), nn.BatchNorm2d(o), nn.ReLU(inplace=True))
            for i, o in ((3, width), (width, 2 * width), (2 * width, 3 * width))
        )
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(3 * width, classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.drop(self.stage3(self.stage2(self.stage1(images))).mean(dim=(2, 3))))


class TwoHeads(Net):
    """Averages two classifiers, as DeiT does."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Linear(12, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        vectors = self.stage3(self.stage2(self.stage1(images))).mean(dim=(2, 3))
        return (self.fc(vectors) + self.other(vectors)) / 2


class Boxed(Net):
    """Returns an object with logits, as transformers' models do."""

    def forward(self, images: Tensor) -> SimpleNamespace:
        return SimpleNamespace(logits=super().forward(images))


def batch(size: int = 32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(6, 3, size, size, generator=generator), torch.arange(6) % CLASSES


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize('method', ['dskd', *sorted(set(methods()) - DENSE_ONLY)])
def test_every_method_for_images_trains_the_student_and_leaves_the_teacher(method: str) -> None:
    student, teacher = Net(), Net(6)
    distiller = dskd_mm.distil(student, teacher, method=method)
    assert distiller.student is student
    before, frozen = copy.deepcopy(student.state_dict()), copy.deepcopy(teacher.state_dict())
    optimizer = torch.optim.SGD(distiller.parameters(), lr=0.01)
    for _ in range(2):
        loss = distiller(*batch())
        optimizer.zero_grad()
        loss.backward()
        assert [name for name, p in distiller.named_parameters() if p.grad is None] == []
        optimizer.step()
    # SimKD leaves the classifier as it is, and writes the teacher's into it for evaluation.
    still = {name for name, p in student.named_parameters() if torch.equal(before[name], p)}
    assert still == ({'fc.weight', 'fc.bias'} if method == 'simkd' else set())
    assert all(torch.equal(frozen[name], value) for name, value in teacher.state_dict().items())
    assert not teacher.training and not any(p.requires_grad for p in teacher.parameters())
    assert not {id(p) for p in distiller.parameters()} & {id(p) for p in teacher.parameters()}
    # The total is the sum of what is logged, and the student's own is among it.
    parts = [value for name, value in distiller.log.items() if 'loss' in name and name not in ('loss', 'loss_student')]
    assert torch.isclose(loss, sum(parts), rtol=1e-5) and len(parts) > 1
    assert not distiller.log['loss'].requires_grad
    assert set(student.state_dict()) == set(Net().state_dict())


def test_it_is_the_distiller_that_configs_build(tmp_path: Path) -> None:
    """The losses are those of the same pair as mmpretrain's model, one by one."""
    pytest.importorskip('mmpretrain')
    from mmengine.registry import MODELS as MMENGINE_MODELS

    from dskd_mm.registry import MODELS
    from dskd_mm.testing import classifier_config, random_batch

    class Plain(nn.Module):
        def __init__(self, model: nn.Module) -> None:
            super().__init__()
            self.backbone, self.fc = model.backbone, model.head.fc

        def forward(self, images: Tensor) -> Tensor:
            return self.fc(self.backbone(images)[-1].mean(dim=(2, 3)))

    def build(width: int) -> nn.Module:
        torch.manual_seed(width)
        config = classifier_config(width=width)
        config.pop('data_preprocessor')
        return MMENGINE_MODELS.build(config)

    student, teacher = build(4), build(6)
    plain, plain_teacher = Plain(copy.deepcopy(student)), Plain(copy.deepcopy(teacher))
    path = str(tmp_path / 'teacher.pth')
    torch.save(teacher.state_dict(), path)
    config = classifier_config(width=6)
    config.pop('data_preprocessor')
    theirs_of = dict(config=dict(model=config), checkpoint=path)
    host = MODELS.build(dict(type='dskd_mm.DSKDDistiller', student=student, teacher=theirs_of, noise_seed=3))
    ours = dskd_mm.distil(plain, plain_teacher, noise_seed=3)
    for part in ('align', 'diffusion', 'lsh'):  # drawn at random: the teacher's head was, before
        getattr(ours.distiller, part).load_state_dict(getattr(host, part).state_dict())
    images, samples = random_batch()
    theirs = host(images, samples, mode='loss')
    ours(images, torch.cat([sample.gt_label for sample in samples]))
    names = {name for name in theirs if name.startswith(('loss_dskd', 'dskd_'))}
    assert len(names) > 10
    for name in names:
        assert torch.allclose(ours.log[name], theirs[name], rtol=1e-4, atol=1e-6), name
    assert torch.isclose(ours.log['loss_cls'], theirs['loss'], rtol=1e-5)


def test_where_a_network_classifies_is_found() -> None:
    found = examine(Net(), None, None, None, 'student')
    assert (found.classifier, found.feature, found.in_channels, found.num_classes) == ('fc', 'stage3', 12, CLASSES)
    assert found.stages == ['stage1', 'stage2', 'stage3']
    # What stands before the teacher is no part of what it classifies on.
    inner = nn.Sequential(nn.Upsample(scale_factor=2), Net())
    assert examine(inner, None, None, None, 'teacher').classifier == '1.fc'
    assert examine(inner, None, None, None, 'teacher').feature == '1.stage3'
    assert examine(Boxed(), None, None, None, 'student').feature == 'stage3'
    assert examine(Net(), None, 'stage2', None, 'student').feature == 'stage2'


def test_a_network_is_examined_without_a_trace() -> None:
    network = Net().train()
    network.drop.eval()
    before, random = copy.deepcopy(network.state_dict()), torch.get_rng_state()
    examine(network, None, None, None, 'student')
    assert network.training and not network.drop.training and torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert not any(module._forward_hooks for module in network.modules())


def test_other_objects_of_logits_and_named_layers_train() -> None:
    layers = dict(middle=('stage2', 'stage2'))
    losses = dict(at=dict(type='dskd_mm.ATLoss', on='middle'))
    distiller = dskd_mm.distil(
        Boxed(), Net(6), 'fc', feature='stage2', layers=layers, distill_losses=losses, loss_weights=dict(lsh=0.0)
    )
    distiller(*batch()).backward()
    assert 'loss_at' in distiller.log and 'loss_dskd_lsh' not in distiller.log
    assert distiller.distiller.student_spec.channels == 8


def test_of_averaged_classifiers_the_named_one_guides() -> None:
    with pytest.raises(ValueError, match=r"No single nn.Linear of the student .* pass classifier='...', .* of fc, other"):
        dskd_mm.distil(TwoHeads(), Net(6))
    student = TwoHeads().eval()
    distiller = dskd_mm.distil(student, Net(6), 'fc')
    distiller(*batch()).backward()
    assert distiller.distiller.student_spec.logits_of == 'network'
    with pytest.raises(ValueError, match=r"of the teacher .* pass teacher_classifier='...'"):
        dskd_mm.distil(Net(6), TwoHeads())


def test_of_several_teachers_the_probabilities_are_averaged() -> None:
    images, labels = batch()
    teachers = [Net(6), Net(8)]
    student = Net().eval()
    distiller = dskd_mm.distil(student, teachers, method='kd', warmup=0)
    distiller(images, labels).backward()
    mean = sum(torch.softmax(teacher(images), dim=1) for teacher in teachers) / 2
    expected = nn.functional.kl_div(torch.log_softmax(student(images), dim=1), mean, reduction='batchmean')
    assert torch.isclose(distiller.log['loss_kd'], expected, rtol=1e-4)
    assert not any(teacher.training for teacher in teachers)
    dskd_mm.distil(Net(), [TwoHeads(), Net(6)], teacher_classifier='other')(images, labels).backward()
    with pytest.raises(ValueError, match='compares features with those of one teacher, but got several'):
        dskd_mm.distil(Net(), teachers, method='vkd')
    with pytest.raises(TypeError, match=r'teacher is expected to be an nn.Module that returns logits, but got a NoneType'):
        dskd_mm.distil(Net(), [])


def test_soft_labels_and_independent_classes() -> None:
    images, labels = batch()
    soft = torch.softmax(torch.randn(6, CLASSES), dim=1)
    assert torch.isfinite(dskd_mm.distil(Net(), Net(6))(images, soft))
    several = (torch.rand(6, CLASSES) > 0.5).float()
    distiller = dskd_mm.distil(Net(), Net(6), criterion=nn.BCEWithLogitsLoss())
    assert distiller.distiller.teacher_spec.sigmoid
    distiller(images, several).backward()
    with pytest.raises(ValueError, match=r'labels are expected as a float tensor \(B, K\) of independent classes, but got'):
        distiller(images, labels)
    smooth = nn.CrossEntropyLoss(label_smoothing=0.1)
    student = Net().eval()
    distiller = dskd_mm.distil(student, Net(6), criterion=smooth)
    distiller(images, labels)
    assert torch.isclose(distiller.log['loss_cls'], smooth(student(images), labels))


def test_the_teacher_comes_to_the_students_type_and_place() -> None:
    images, labels = batch()
    teacher = Net(6).double()
    distiller = dskd_mm.distil(Net(), teacher)
    assert teacher.fc.weight.dtype == torch.float32
    with torch.autocast('cpu', torch.bfloat16):
        loss = distiller(images, labels)
    loss.backward()
    assert torch.isfinite(loss)
    distiller.to('meta')
    assert teacher.fc.weight.is_meta and distiller.distiller.classifiers[0].weight.is_meta
    with pytest.raises(
        TypeError, match=r"student's weights are expected in float32, but are in torch.float64: .* torch.autocast"
    ):
        dskd_mm.distil(Net().double(), Net(6))


def test_a_checkpoint_goes_on_as_before() -> None:
    def make(seed: int) -> NetworkDistiller:
        torch.manual_seed(seed)
        student = Net()
        torch.manual_seed(9)
        return dskd_mm.distil(student, Net(6), noise_seed=seed).eval()

    one, other = make(1), make(2)
    one(*batch())
    buffer = io.BytesIO()
    torch.save(one.state_dict(), buffer)
    buffer.seek(0)
    other.load_state_dict(torch.load(buffer, weights_only=True))
    assert torch.equal(one(*batch()), other(*batch()))
    assert not [name for name in one.state_dict() if 'teacher' in name]


def test_the_loss_of_a_validation_is_no_step() -> None:
    distiller = dskd_mm.distil(Net(), Net(6))
    distiller(*batch())
    before = {name: value.clone() for name, value in distiller.state_dict().items()}
    with torch.no_grad():
        distiller.eval()(*batch())
    assert all(torch.equal(value, before[name]) for name, value in distiller.state_dict().items())
    # Nothing was trained before: there is a loss all the same.
    assert torch.isfinite(dskd_mm.distil(Net(), Net(6)).eval()(*batch()))


@pytest.mark.parametrize(
    ('change', 'words'),
    [
        (dict(teacher=Net(6, classes=7)), 'both must know the same classes'),
        (dict(classifier='drop'), r"classifier expects the path of an nn.Linear, of fc, but 'drop' is Dropout"),
        (dict(classifier='fcc'), "no module 'fcc'. Did you mean 'fc'"),
        (dict(feature='fc'), r"no module 'fc' that gives out maps; these do: \['stage1.0'"),
        (dict(teacher_feature='stage1'), "has 6 channels, but the classifier 'fc', which guides in its space, takes 18"),
        (dict(layers=dict(a=('stage1', 'drop'))), "layers.a: the teacher has no module 'drop' that gives out maps"),
        (dict(student=nn.Sequential(nn.Conv2d(3, CLASSES, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())), 'has no nn.Linear'),
        (dict(student=nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, CLASSES))), r'pass image_size=...'),
        (dict(method='cwd'), r"no settings for 'classification', which the student \(Net\) is: choose another method"),
        (dict(method='nothing'), 'Expected one of the methods at, crosskd, cwd'),
    ],
)
def test_what_cannot_be_distilled_is_told(change: dict, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        dskd_mm.distil(**{'student': Net(), 'teacher': Net(6), **change})


def test_no_loss_of_the_users_is_dropped() -> None:
    own = dict(mine=dict(type='dskd_mm.FitNetLoss', on='stge1'))
    with pytest.raises(ValueError, match="'stge1'"):
        dskd_mm.distil(Net(), Net(6), method='at', distill_losses=own)
    own['mine']['on'] = 'stage1'  # the mend
    assert 'mine' in dskd_mm.distil(Net(), Net(6), method='at', distill_losses=own).distiller.distill_losses


def test_the_mends_of_refusals_work() -> None:
    flat = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, CLASSES))
    assert torch.isfinite(dskd_mm.distil(flat, Net(6), image_size=8)(*batch(8)))
    assert torch.isfinite(dskd_mm.distil(flat, Net(6), '1')(*batch(8)))
    network = Net()
    with pytest.raises(ValueError, match=r'pass copy.deepcopy\(student\)'):
        dskd_mm.distil(network, network)
    dskd_mm.distil(network, copy.deepcopy(network))
    with pytest.raises(TypeError, match=r'expected to be an nn.Module that returns logits, but got a str'):
        dskd_mm.distil('resnet18', network)
    with pytest.raises(TypeError, match=r"has no argument 'warm_up' .* Did you mean 'warmup'"):
        dskd_mm.distil(Net(), network, warm_up=3)


def test_networks_that_return_more_than_logits_are_told() -> None:
    class Pair(Net):
        def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
            logits = super().forward(images)
            return logits, logits

    distiller = dskd_mm.distil(Net(), Net(6))
    distiller.distiller.student.network.forward = Pair().forward
    with pytest.raises(ValueError, match=r'expected to return logits of shape \(B, K\), but got tuple: switch its auxiliary'):
        distiller(*batch())
    # What torchvision's Inception and GoogLeNet return in training alone, of which one field is called logits.
    outputs = namedtuple('Outputs', 'logits aux')
    distiller.distiller.student.network.forward = lambda images: outputs(*Pair()(images))
    with pytest.raises(ValueError, match=r'expected to return logits of shape \(B, K\), but got Outputs: switch its auxiliary'):
        distiller(*batch())


def test_methods_without_settings_for_images_are_the_known_ones() -> None:
    from mmengine.config import Config

    model = dict(type='dskd_mm.DSKDDistiller', student=dict(type='Net'), teacher={})
    cfg = Config(dict(default_scope='mmpretrain', model=model))
    assert {method for method in methods() if not suits(method, cfg)} == DENSE_ONLY


@pytest.mark.parametrize('name', ['resnet18', 'mobilenet_v3_small', 'vit_b_16', 'googlenet'])
def test_torchvision(name: str) -> None:
    models = pytest.importorskip('torchvision').models
    make = getattr(models, name)
    options = dict(init_weights=False, aux_logits=False) if name == 'googlenet' else {}
    found = examine(make(**options), None, None, None, 'student')
    expected = dict(
        resnet18=('fc', 'layer4'),
        mobilenet_v3_small=('classifier.3', None),
        vit_b_16=('heads.head', None),
        googlenet=('fc', 'inception5b'),
    )
    assert (found.classifier, found.feature) == expected[name]


@pytest.mark.parametrize(
    ('name', 'classifier', 'feature'),
    [
        ('test_resnet', 'fc', 'layer4'),
        ('mobilenetv3_small_050', 'classifier', None),
        ('test_vit', 'head', None),
        ('test_convnext', 'head.fc', None),
    ],
)
def test_timm(name: str, classifier: str, feature: str | None) -> None:
    timm = pytest.importorskip('timm')
    size = timm.get_pretrained_cfg(name).input_size[1]
    student = timm.create_model(name, num_classes=CLASSES)
    found = examine(student, None, None, None, 'student')
    assert (found.classifier, found.feature) == (classifier, feature)
    distiller = dskd_mm.distil(student, Net(6))
    distiller(*batch(size)).backward()


def test_another_default_device_changes_nothing() -> None:
    """What shows where a network classifies is drawn on the CPU, and moved to it."""
    student = Net()
    expected = examine(student, None, None, None, 'student')
    with torch.device('meta'):
        assert examine(student, None, None, None, 'student') == expected
