"""Models that are one network of another library, as mmpretrain's TimmClassifier and HuggingFaceClassifier are."""

from typing import Any

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.registry import MODELS
from torch import nn

from dskd_mm.distillers import DSKDDistiller
from dskd_mm.preflight import check_config
from dskd_mm.testing import TOY_CLASSES, classifier_config, random_batch, random_teacher, save_random_model, train
from dskd_mm.utils.checkpoint import export_student, load_plain_model
from support import build_distiller, distiller_run_config, toy_runner, watch

pytest.importorskip('mmpretrain')
from mmpretrain.models import HuggingFaceClassifier
from mmpretrain.models.classifiers import BaseClassifier

IMAGE = 32


class Pooled(nn.Module):
    """Ends as torchvision's ResNets do."""

    def __init__(self, width: int = 8, num_classes: int = TOY_CLASSES) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, 2, 1), nn.BatchNorm2d(width), nn.ReLU())
        self.last = nn.Linear(width, num_classes)
        self.pool = nn.AdaptiveAvgPool2d(1)

    def forward(self, images: torch.Tensor) -> Any:
        return self.last(self.pool(self.stem(images)).flatten(1))


class Convolved(Pooled):
    """Classifies by a 1x1 convolution of the pooled map, as timm's DLA and ResNetV2."""

    def __init__(self, width: int = 8, num_classes: int = TOY_CLASSES) -> None:
        super().__init__(width)
        self.last = nn.Conv2d(width, num_classes, 1)

    def forward(self, images: torch.Tensor) -> Any:
        return self.last(self.pool(self.stem(images))).flatten(1)


class Squeezed(Convolved):
    """Classifies each location and averages what is positive, as SqueezeNet."""

    def forward(self, images: torch.Tensor) -> Any:
        return self.pool(self.last(self.stem(images)).relu()).flatten(1)


class Distilled(Pooled):
    """Averages two classifiers, as DeiT."""

    def __init__(self, width: int = 8, num_classes: int = TOY_CLASSES) -> None:
        super().__init__(width)
        self.other = nn.Linear(width, num_classes)

    def forward(self, images: torch.Tensor) -> Any:
        vectors = self.pool(self.stem(images)).flatten(1)
        return (self.last(vectors) + self.other(vectors)) / 2


class Wordy(Distilled):
    """Returns its logits in an object, as the networks of transformers."""

    def forward(self, images: torch.Tensor) -> Any:
        return type('Output', (), dict(logits=super().forward(images)))()


class Worded(Pooled):
    """Does so with logits of one layer."""

    def forward(self, images: torch.Tensor) -> Any:
        return type('Output', (), dict(logits=super().forward(images)))()


class Branching(Pooled):
    """Looks at values, which there are none of on the meta device."""

    def forward(self, images: torch.Tensor) -> Any:
        return super().forward(images if bool(images.sum() > 0) else -images)


NETWORKS = {cls.__name__: cls for cls in (Pooled, Convolved, Squeezed, Distilled, Wordy, Worded, Branching)}
TIMM = {
    'resnet': dict(model_name='resnet18', layers=[1, 1, 1, 1], channels=[8, 8, 16, 16], stem_width=8),
    'vit': dict(model_name='vit_tiny_patch16_224', img_size=IMAGE, patch_size=8, embed_dim=24, depth=1, num_heads=2),
    'convnext': dict(model_name='convnext_atto', depths=[1, 1, 1, 1], dims=[8, 8, 16, 16]),
    'dla': dict(model_name='dla46_c', levels=[1, 1, 1, 1, 1, 1], channels=[8, 8, 8, 8, 8, 16]),
    'mobilenet': dict(model_name='mobilenetv2_035', drop_rate=0.2),
}
SETTINGS = dict(mean=[120.0, 110.0, 100.0], std=[60.0, 62.0, 64.0], to_rgb=True)


def network_config(kind: str, **kwargs: Any) -> ConfigDict:
    """Config of a classifier that is one network: a small one of timm, or one of ours in its place."""
    base = dict(type='mmpretrain.TimmClassifier', data_preprocessor=dict(num_classes=TOY_CLASSES, **SETTINGS))
    if kind in TIMM:
        pytest.importorskip('timm')
        return ConfigDict(base, num_classes=TOY_CLASSES, **{**TIMM[kind], **kwargs})
    return ConfigDict(base, model_name=kind, **kwargs)


@pytest.fixture(autouse=True)
def networks_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let TimmClassifier find our networks, as timm finds its own by name."""
    timm = pytest.importorskip('timm')
    create = timm.models.create_model

    def create_model(model_name: str, **kwargs: Any) -> nn.Module:
        return NETWORKS[model_name](**kwargs) if model_name in NETWORKS else create(model_name, **kwargs)

    monkeypatch.setattr(timm.models, 'create_model', create_model)


def teacher_of(path: Any, kind: str, **kwargs: Any) -> dict[str, Any]:
    config = network_config(kind, **kwargs)
    checkpoint = str(path / 'teacher.pth')
    save_random_model(config, checkpoint, r'last|head|fc|classifier')
    return dict(config=dict(model=config), checkpoint=checkpoint)


def distiller_of(teacher: dict[str, Any], student: Any, **kwargs: Any) -> Any:
    return build_distiller(dict(type='dskd_mm.DSKDDistiller', student=student, teacher=teacher, **kwargs))


def batch_of_images() -> dict[str, Any]:
    return dict(zip(('inputs', 'data_samples'), random_batch(image_size=IMAGE), strict=True))


def is_random(module: nn.Module) -> bool:
    return isinstance(module, (nn.modules.batchnorm._BatchNorm, nn.Dropout))


@pytest.mark.parametrize('kind', [*TIMM, 'Pooled', 'Convolved'])
def test_a_student_that_is_its_teacher_has_nothing_to_learn(tmp_path, kind: str) -> None:
    teacher = teacher_of(tmp_path, kind, **({} if kind != 'mobilenet' else dict(drop_rate=0.0)))
    distiller = distiller_of(teacher, teacher['config']['model'], prior='teacher')
    distiller.load_teacher()
    distiller.student.load_state_dict(distiller.teacher.require_model().state_dict())
    for module in filter(is_random, distiller.student.modules()):
        module.eval()
    calls, batch = watch(distiller, 'distill'), batch_of_images()
    losses = distiller(**batch, mode='loss')
    student, other = calls[-1].args[:2]
    logits = distiller.teacher.model(batch['inputs'])
    torch.testing.assert_close(student.logits, logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(other.logits, logits, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(student.features, other.features, rtol=1e-5, atol=1e-5)
    (classifier,) = distiller.teacher.classifiers
    torch.testing.assert_close(classifier(other.features[0]), logits, rtol=1e-5, atol=1e-5)
    assert abs(float(losses['loss_dskd_logit'].detach())) < 1e-5 and float(logits.detach().std()) > 0.01


@pytest.mark.parametrize('kind', [*TIMM, 'Pooled', 'Convolved'])
@pytest.mark.parametrize('runs', [True, False], ids=['teacher_runs', 'teacher_free'])
def test_distils_and_gives_the_plain_model(tmp_path, kind: str, runs: bool) -> None:
    config = network_config(kind)
    teacher = teacher_of(tmp_path, 'Pooled', width=12)
    distiller = distiller_of(teacher, config, **({} if runs else dict(preset='teacher_free')))
    before = {key: value.clone() for key, value in distiller.student.state_dict().items()}
    for log in train(distiller, batch_of_images()):
        assert all(bool(value.isfinite()) for value in log.values())
    assert any(not torch.equal(before[key], value) for key, value in distiller.student.state_dict().items())
    torch.save(dict(meta={}, state_dict=distiller.state_dict()), tmp_path / 'epoch_1.pth')
    export_student(str(tmp_path / 'epoch_1.pth'), str(tmp_path / 'plain.pth'))
    plain = MODELS.build(config)
    load_plain_model(plain, str(tmp_path / 'plain.pth'))
    images = batch_of_images()['inputs']
    torch.testing.assert_close(plain.eval()(images), distiller.student.eval()(images), rtol=0, atol=0)
    again = distiller_of(teacher, config, **({} if runs else dict(preset='teacher_free')))
    again.load_state_dict(distiller.state_dict(), strict=True)
    torch.testing.assert_close(again.student.eval()(images), plain(images), rtol=0, atol=0)


def test_a_plain_checkpoint_of_the_student_loads(tmp_path) -> None:
    teacher = teacher_of(tmp_path, 'resnet')
    distiller = distiller_of(teacher, teacher['config']['model'])
    state = torch.load(teacher['checkpoint'])['state_dict']
    assert 'conv1.weight' in state  # as timm itself calls it
    distiller.load_state_dict(state, strict=False)
    torch.testing.assert_close(distiller.student.model.conv1.weight, state['conv1.weight'])


def test_pooled_maps_are_the_feature_and_what_dropout_changes_is_not(tmp_path) -> None:
    teacher = teacher_of(tmp_path, 'resnet')
    spec = distiller_of(teacher, network_config('resnet')).student_spec
    assert spec.is_pooled and spec.features == ('model.global_pool.pool',) and spec.classifiers == ('model.fc',)
    spec = distiller_of(teacher, network_config('mobilenet')).student_spec
    assert not spec.is_pooled and spec.features == spec.classifiers == ('model.classifier',)


@pytest.mark.parametrize('kind', ['Squeezed', 'Distilled', 'Wordy', 'Branching'])
@pytest.mark.parametrize('owner', ['student', 'teacher'])
def test_where_logits_are_made_of_more_the_option_that_is_named_works(tmp_path, kind: str, owner: str) -> None:
    teacher = teacher_of(tmp_path, kind if owner == 'teacher' else 'Pooled')
    student = network_config(kind if owner == 'student' else 'Pooled')
    if kind == 'Wordy' and owner == 'student':
        pytest.skip('a TimmClassifier cannot train it')
    option = 'teacher_classifier' if owner == 'teacher' else 'classifier'
    with pytest.raises(ValueError, match=rf'site=dict\({option}=') as error:
        distiller_of(teacher, student)
    assert kind == 'Branching' or "'model.last'" in str(error.value)
    distiller = distiller_of(teacher, student, site={option: 'model.last'}, prior='teacher')
    calls, batch = watch(distiller, 'distill'), batch_of_images()
    for log in train(distiller, batch):
        assert all(bool(value.isfinite()) for value in log.values())
    if owner == 'teacher':
        said = distiller.teacher.model.model(batch['inputs'])
        torch.testing.assert_close(calls[-1].args[1].logits, getattr(said, 'logits', said))


def test_a_network_without_a_fitting_layer_says_so(tmp_path) -> None:
    teacher = random_teacher(str(tmp_path))
    student = MODELS.build(network_config('Pooled'))
    student.model = nn.Sequential(nn.Conv2d(3, TOY_CLASSES, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ValueError, match=r'of which there is none with as many outputs'):
        DSKDDistiller(student=student, teacher=teacher)


def test_a_missing_tensor_is_called_as_in_the_checkpoint(tmp_path) -> None:
    teacher = teacher_of(tmp_path, 'Pooled')
    torch.save(dict(state_dict={'other': torch.zeros(1)}), teacher['checkpoint'])
    with pytest.raises(ValueError, match=r'0 keys match, 8 missing \(last\.bias, '):
        distiller_of(teacher, network_config('Pooled')).load_teacher()


@pytest.mark.parametrize(
    ('kind', 'path', 'channels'),
    [('resnet', 'model.layer3', 16), ('vit', 'model.patch_embed.proj', 24), ('Worded', 'model.stem', 8)],
)
def test_channels_of_further_layers_are_found(tmp_path, kind: str, path: str, channels: int) -> None:
    if kind == 'Worded':
        preprocessor = dict(type='mmpretrain.ClsDataPreprocessor', num_classes=TOY_CLASSES, **SETTINGS)
        student = ConfigDict(type='HuggingFaceStandIn', data_preprocessor=preprocessor)
    else:
        student = network_config(kind)
    layers = dict(map=dict(student=dict(path=path), teacher=dict(path='model.stem')))
    losses = dict(fit=dict(type='dskd_mm.FitNetLoss', on='map'))
    distiller = distiller_of(teacher_of(tmp_path, 'Pooled'), student, layers=layers, distill_losses=losses)
    assert distiller.student_spec.layers['map'].channels == channels
    assert all(bool(log['loss_fit'].isfinite()) for log in train(distiller, batch_of_images()))


@pytest.mark.parametrize('student', ['Pooled', 'vit'])
def test_a_run_is_checked_and_goes_on_after_an_interruption(tmp_path, student: str) -> None:
    teacher = teacher_of(tmp_path, 'resnet')
    cfg = distiller_run_config(str(tmp_path), teacher=teacher, student=dict(image_size=IMAGE))
    cfg.model.student = network_config(student)
    cfg.custom_hooks = [dict(type=name) for name in ('EMAHook', 'dskd_mm.ResumeHook', 'dskd_mm.StudentExportHook')]
    report = check_config(cfg)
    assert report.faults == []
    assert 'left out' not in str([finding.text for finding in report.findings if finding.subject == 'step'])
    toy_runner(cfg).train()
    whole = torch.load(tmp_path / 'epoch_2.pth', weights_only=False)
    (tmp_path / 'epoch_2.pth').unlink()
    toy_runner(cfg, resume=True, load_from=str(tmp_path / 'epoch_1.pth')).train()
    resumed = torch.load(tmp_path / 'epoch_2.pth', weights_only=False)
    for key, value in whole['state_dict'].items():
        torch.testing.assert_close(resumed['state_dict'][key], value, msg=lambda text, key=key: f'{key}: {text}')
    load_plain_model(MODELS.build(cfg.model.student), str(tmp_path / 'student_last.pth'))


def test_a_larger_transformer_of_other_class_order_teaches_beside_another(tmp_path) -> None:
    names, order = list('abcde'), torch.tensor([2, 0, 1, 4, 3])
    first = {**teacher_of(tmp_path, 'vit'), 'input_size': (IMAGE, IMAGE)}
    state = torch.load(first['checkpoint'])['state_dict']
    shuffled = {key: value[order] if key.startswith('head.') else value for key, value in state.items()}
    meta = dict(dataset_meta=dict(classes=[names[i] for i in order]))
    torch.save(dict(meta=meta, state_dict=shuffled), tmp_path / 'shuffled.pth')
    other = {**first, 'checkpoint': str(tmp_path / 'shuffled.pth'), 'match_classes': names}
    student = classifier_config('gap', image_size=16)
    images, samples = random_batch(image_size=16)
    seen = []
    for teacher in (first, other, [first, other]):
        distiller = distiller_of(teacher, student)
        calls = watch(distiller, 'distill')
        distiller(images, samples, mode='loss')
        seen.append(calls[-1].args[1].logits)
    torch.testing.assert_close(seen[1], seen[0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(seen[2], seen[0], rtol=1e-5, atol=1e-5)
    assert float(seen[0].std()) > 0.01


def test_public_weights_in_safetensors(tmp_path) -> None:
    safetensors = pytest.importorskip('safetensors.torch')
    teacher = teacher_of(tmp_path, 'resnet')
    state = torch.load(teacher['checkpoint'])['state_dict']
    path = str(tmp_path / 'teacher.safetensors')
    safetensors.save_file(state, path)
    distiller = distiller_of({**teacher, 'checkpoint': path}, network_config('Pooled'))
    distiller.load_teacher()
    torch.testing.assert_close(distiller.teacher.classifiers[0].weight, state['fc.weight'])
    (tmp_path / 'teacher.safetensors').write_bytes(b'0' * 20)
    with pytest.raises(ValueError, match=r'truncated or damaged'):
        distiller_of({**teacher, 'checkpoint': path}, network_config('Pooled')).load_teacher()


@MODELS.register_module(force=True)
class HuggingFaceStandIn(HuggingFaceClassifier):
    """The classifier of transformers' networks with one of ours, for where transformers is not installed."""

    def __init__(self, data_preprocessor: dict, network: str = 'Worded', loss: dict | None = None) -> None:
        BaseClassifier.__init__(self, data_preprocessor=data_preprocessor)
        self.model = NETWORKS[network]()
        self.loss_module = MODELS.build(dict(type='mmpretrain.CrossEntropyLoss'))
        self._register_state_dict_hook(self._remove_state_dict_prefix)
        self._register_load_state_dict_pre_hook(self._add_state_dict_prefix)


@pytest.mark.parametrize(('network', 'site'), [('Worded', {}), ('Wordy', dict(classifier='model.last'))])
def test_an_object_that_holds_logits_teaches_and_learns(tmp_path, network: str, site: dict) -> None:
    preprocessor = dict(type='mmpretrain.ClsDataPreprocessor', num_classes=TOY_CLASSES, **SETTINGS)
    config = ConfigDict(type='HuggingFaceStandIn', data_preprocessor=preprocessor, network=network)
    save_random_model(config, str(tmp_path / 'teacher.pth'), 'last')
    teacher = dict(config=dict(model=config), checkpoint=str(tmp_path / 'teacher.pth'))
    site = site | ({f'teacher_{key}': value for key, value in site.items()})
    distiller = distiller_of(teacher, config, prior='teacher', site=site)
    distiller.load_teacher()
    load_plain_model(distiller.student, teacher['checkpoint'])
    for module in filter(is_random, distiller.student.modules()):
        module.eval()
    calls, batch = watch(distiller, 'distill'), batch_of_images()
    losses = distiller(**batch, mode='loss')
    assert abs(float(losses['loss_dskd_logit'].detach())) < 1e-5
    said = distiller.student(batch['inputs'])
    for outputs in calls[-1].args[:2]:
        torch.testing.assert_close(outputs.logits, said, rtol=1e-5, atol=1e-5)
    for log in train(distiller, batch):
        assert all(bool(value.isfinite()) for value in log.values())
    torch.save(dict(state_dict=distiller.state_dict()), tmp_path / 'epoch.pth')
    export_student(str(tmp_path / 'epoch.pth'), str(tmp_path / 'plain.pth'))
    load_plain_model(MODELS.build(config), str(tmp_path / 'plain.pth'))


def test_a_classifier_of_transformers(tmp_path) -> None:
    transformers = pytest.importorskip('transformers')
    settings = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type='basic', num_labels=TOY_CLASSES
    )
    settings.save_pretrained(tmp_path)
    config = ConfigDict(network_config('Pooled'), type='mmpretrain.HuggingFaceClassifier', model_name=str(tmp_path))
    save_random_model(config, str(tmp_path / 'teacher.pth'), 'classifier')
    teacher = dict(config=dict(model=config), checkpoint=str(tmp_path / 'teacher.pth'))
    distiller = distiller_of(teacher, config, prior='teacher')
    for log in train(distiller, batch_of_images()):
        assert all(bool(value.isfinite()) for value in log.values())
