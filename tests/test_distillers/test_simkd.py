"""SimKD: its loss and its folded classifier against the authors' formula, and training of classifiers."""

import copy
from typing import Any

import pytest
import torch
from mmengine.registry import MODELS
from rival_checks import assert_behaves, needs_mmseg, rival_batch, rival_config
from torch.nn import functional as F

import dskd_mm
from dskd_mm.structures import ModelOutputs, Target
from dskd_mm.testing import classifier_config, train
from dskd_mm.utils.checkpoint import load_checkpoint_file, model_state
from support import assert_refused, build_distiller, distiller_run_config, toy_runner

METHOD = 'SimKDDistiller'


def reused(distiller: Any, images: torch.Tensor) -> torch.Tensor:
    """What the authors' student says: backbone, projector in evaluation, pooling, the teacher's classifier."""
    state, student = copy.deepcopy(distiller.align), distiller.student
    with torch.no_grad():
        projected = state.eval()(student.backbone(images)[-1])
        head = distiller.teacher.model.head.fc
        return F.linear(F.adaptive_avg_pool2d(projected, 1).flatten(1), head.weight, head.bias)


def test_the_loss_is_the_formula(tmp_path):
    """As the authors' script has it: the mean squared error of the maps, at the lower resolution, and nothing else."""
    distiller = build_distiller(rival_config(METHOD, 'gap', tmp_path, loss_weights=dict(feature=2.0)))
    distiller.load_teacher()
    torch.manual_seed(0)
    ours, theirs = torch.randn(4, 16, 3, 2, requires_grad=True), torch.randn(4, 24, 3, 2)
    found = distiller.distill(ModelOutputs([ours], [torch.randn(4, 5)]), ModelOutputs([theirs]), Target(None), None)
    convolution, norm = distiller.align.layers
    projected = F.batch_norm(F.conv2d(ours, convolution.weight), None, None, training=True, eps=norm.eps)
    torch.testing.assert_close(found, dict(loss_simkd_feature=2 * (projected - theirs).pow(2).mean()))


@pytest.mark.parametrize(('kind', 'switches'), [('gap', {}), ('vit', {}), ('multi_label', dict(align=dict(norm=None)))])
def test_it_trains_and_resumes(tmp_path, kind, switches):
    assert_behaves(rival_config(METHOD, kind, tmp_path, **switches), kind, 'simkd', {'_feature'})


@pytest.mark.parametrize('align', [{}, dict(norm=None), dict(kind='identity', norm=None)])
def test_the_plain_student_is_what_was_trained(tmp_path, align):
    """Evaluated in the distiller, exported, or read from a checkpoint, the student says what the teacher's classifier says."""
    config = rival_config(METHOD, 'gap', tmp_path, align=align)
    if align.get('kind') == 'identity':
        config.student = classifier_config('gap', width=6)
    distiller = build_distiller(config)
    batch = rival_batch(distiller, 'gap')
    # Norms have moved away from where they began.
    train(distiller, batch, steps=5, lr=0.1)
    trained = distiller.classifier.weight.clone()
    plain = MODELS.build(copy.deepcopy(config.student))
    plain.load_state_dict(model_state(distiller.state_dict()), strict=True)
    distiller.eval()
    expected = reused(distiller, batch['inputs'])
    assert float(expected.std()) > 0.01
    torch.testing.assert_close(distiller(batch['inputs']), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(plain.eval()(batch['inputs']), expected, rtol=1e-4, atol=1e-5)
    assert align.get('kind') == 'identity' or not torch.equal(distiller.classifier.weight, trained)
    # Nobody needs the teacher any more.
    other = build_distiller(config)
    other.load_state_dict(distiller.state_dict())
    torch.testing.assert_close(other.eval()(batch['inputs']), expected, rtol=1e-4, atol=1e-5)
    assert not other.teacher.is_loaded


def test_a_copy_folds_its_own_projector(tmp_path):
    """EMA averages a copy, whose student is saved."""
    distiller = build_distiller(rival_config(METHOD, 'gap', tmp_path))
    train(distiller, rival_batch(distiller, 'gap'), steps=2, lr=0.1)
    copied = copy.deepcopy(distiller).eval()
    with torch.no_grad():
        copied.align.layers[0].weight.mul_(-1)
    kept = distiller.eval().classifier.weight.clone()
    images = torch.randn(3, 3, 16, 16)
    copied.state_dict()
    torch.testing.assert_close(copied(images), reused(copied, images), rtol=1e-4, atol=1e-5)
    assert torch.equal(distiller.classifier.weight, kept) and not torch.allclose(copied.classifier.weight, kept)


@pytest.mark.parametrize('hooks', [[], [dict(type='EMAHook', momentum=0.3)]], ids=['plain', 'ema'])
def test_a_run_saves_the_folded_student(tmp_path, hooks):
    cfg = distiller_run_config(str(tmp_path))
    cfg.model.type = 'dskd_mm.SimKDDistiller'
    runner = toy_runner(cfg, custom_hooks=[*hooks, dict(type='dskd_mm.StudentExportHook')])
    runner.train()
    saved = load_checkpoint_file(str(tmp_path / 'epoch_2.pth'))['state_dict']
    layer, (matrix, *norm) = (
        runner.model.teacher.model.head.fc,
        (saved[f'align.layers.{name}'] for name in ('0.weight', '1.weight', '1.bias', '1.running_mean', '1.running_var')),
    )
    features = torch.eye(len(matrix[0]))
    projected = F.batch_norm(features @ matrix.flatten(1).T, norm[2], norm[3], norm[0], norm[1])
    plain = load_checkpoint_file(str(tmp_path / 'student_last.pth'))['state_dict']
    for state, prefix in ((saved, 'student.'), (plain, '')):
        said = F.linear(features, state[f'{prefix}head.fc.weight'], state[f'{prefix}head.fc.bias'])
        torch.testing.assert_close(said, layer(projected).detach(), rtol=1e-4, atol=1e-5)


def test_the_task_does_not_train(tmp_path):
    distiller = build_distiller(rival_config(METHOD, 'gap', tmp_path))
    batch = rival_batch(distiller, 'gap')
    losses = distiller(**batch, mode='loss')
    total, log = distiller.parse_losses(losses)
    total.backward()
    assert float(log['loss_student']) == 0 and total.item() == losses['loss_simkd_feature'].item() > 0
    assert distiller.classifier.weight.grad.abs().max() == 0  # there, so that DDP does not wait
    before = losses['loss_simkd_feature']
    for _ in range(3):
        *_, last = train(distiller, batch, steps=20, lr=0.05)
    assert last['loss_simkd_feature'] < 0.5 * before


def test_without_a_config(tmp_path):
    """In a loop of one's own, eval() of the distiller brings the student up to date."""
    torch.manual_seed(0)

    def network(width):
        layers = torch.nn.Conv2d(3, width, 3), torch.nn.ReLU(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()
        return torch.nn.Sequential(*layers, torch.nn.Linear(width, 5))

    student, teacher, images = network(6), network(8), torch.randn(4, 3, 64, 64)
    distiller = dskd_mm.distil(student, teacher, method='simkd', warmup=0)
    optimizer = torch.optim.SGD(distiller.parameters(), lr=0.1)
    distiller(images, torch.tensor([0, 1, 2, 3])).backward()
    optimizer.step()
    stale = student[4].weight.clone()
    distiller.eval()
    assert not torch.equal(student[4].weight, stale)
    projected = distiller.distiller.align(student[:2](images)).mean(dim=(2, 3))
    torch.testing.assert_close(student(images), teacher[4](projected), rtol=1e-4, atol=1e-5)


REFUSED = {
    'a projector that is not linear': (dict(align=dict(kind='mlp')), ['one linear layer', "{'kind': 'mlp'}"]),
    'a norm that is not linear': (dict(align=dict(norm='GN')), ['one linear layer', "{'norm': 'GN'}"]),
    'another tap': (
        dict(site=dict(feature=dict(path='backbone.layer2', channels=8))),
        ["'head.fc' of 'backbone.layer2'", 'choose SRRL'],
    ),
    'unknown weights': (dict(loss_weights=dict(kd=1.0)), ["['feature']", "'kd'"]),
}


@pytest.mark.parametrize('name', REFUSED)
def test_what_cannot_be_folded_is_refused(tmp_path, name):
    switches, words = REFUSED[name]
    assert_refused(rival_config(METHOD, 'gap', tmp_path), lambda config: config.update(switches), words)


def test_a_layer_without_a_bias_is_refused(tmp_path):
    student = MODELS.build(classifier_config())
    student.head.fc = torch.nn.Linear(16, 5, bias=False)
    config = rival_config(METHOD, 'gap', tmp_path)
    config.student = student
    assert_refused(config, lambda config: None, ['with a bias', 'bias=False', 'Choose SRRL'])


@needs_mmseg
def test_it_is_for_images(tmp_path):
    assert_refused(rival_config(METHOD, 'fcn', tmp_path), lambda config: None, ['classifiers of images', 'SegmentationSite'])
