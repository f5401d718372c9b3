"""The mean of the student's and the teacher's classifier as a head of the student's own shape."""

from typing import Any

import pytest
import torch
from mmengine.config import Config
from rival_checks import needs_mmdet, needs_mmseg, rival_batch, rival_config
from torch import Tensor, nn

from dskd_mm.cli import export
from dskd_mm.distillers.fuse import fuse_classifier, fuse_layer, linear_part
from dskd_mm.features import ChannelAlign, Pyramid
from dskd_mm.guidance import TeacherClassifier
from dskd_mm.structures import TapRecord
from dskd_mm.utils.checkpoint import load_checkpoint_file
from support import build_distiller


def trained(kind: str, folder: Any, **switches: Any) -> tuple[Any, dict]:
    """A distiller whose norms have moved, and a batch."""
    torch.manual_seed(0)
    distiller = build_distiller(rival_config('DSKDDistiller', kind, folder, **switches))
    batch = rival_batch(distiller, kind)
    optimizer = torch.optim.SGD(distiller.parameters(), lr=0.05)
    for _ in range(3):
        total, _ = distiller.parse_losses(distiller(**batch, mode='loss'))
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    return distiller.eval(), batch


def opinions(distiller: Any, batch: dict) -> tuple[list[Tensor], list[Tensor]]:
    """Logits of the student at each level, and of the teacher's classifiers on z."""
    with torch.no_grad(), TapRecord(distiller.student, distiller.student_spec, 'student') as record:
        distiller.student(**batch, mode='loss')  # in which every site has logits
        features = record.features
        pyramid = Pyramid.of(features)
        z = distiller.align(Pyramid.pack(features)[..., None])[..., 0]
        theirs = [f(level) for f, level in zip(distiller.classifiers * len(features), pyramid.unpack(z), strict=False)]
        return [level.clone() for level in record.logits], theirs


@pytest.mark.parametrize(
    ('kind', 'switches'),
    [
        ('gap', {}),
        ('gap', dict(align=dict(norm=None))),
        ('vit', {}),
        ('multi_label', {}),
        pytest.param('fcn', {}, marks=needs_mmseg),
        pytest.param('binary', {}, marks=needs_mmseg),
        pytest.param('faster_rcnn', {}, marks=needs_mmdet),
    ],
)
def test_the_fused_head_says_the_mean_of_both(tmp_path, kind, switches):
    distiller, batch = trained(kind, tmp_path, **switches)
    torch.manual_seed(5)  # a detector's own sampling of proposals
    before, theirs = opinions(distiller, batch)
    apart = max((ours - other).abs().max() for ours, other in zip(before, theirs, strict=True))
    assert apart > 1e-2
    state = {key: value.clone() for key, value in distiller.student.state_dict().items()}
    fuse_classifier(distiller)
    torch.manual_seed(5)
    after, _ = opinions(distiller, batch)
    for found, ours, other in zip(after, before, theirs, strict=True):
        torch.testing.assert_close(found, (ours + other) / 2, rtol=1e-5, atol=1e-5)
    # Nothing else of the student has changed, and its shapes are its own.
    changed = {key for key, value in distiller.student.state_dict().items() if not torch.equal(value, state[key])}
    assert changed == {f'{path}.{name}' for path in distiller.student_spec.classifiers for name in ('weight', 'bias')}


def test_only_the_teachers_classifier_is_loaded(tmp_path):
    distiller, batch = trained('gap', tmp_path, preset='teacher_free')
    before, theirs = opinions(distiller, batch)
    distiller.teacher.classifiers = []
    fuse_classifier(distiller)
    after, _ = opinions(distiller, batch)
    assert distiller.teacher.model is None
    torch.testing.assert_close(after[0], (before[0] + theirs[0]) / 2, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('padding', [0, 1])
@pytest.mark.parametrize('bias', [True, False])
def test_kernels_are_fused_but_for_a_border_of_zeros(padding, bias):
    torch.manual_seed(0)
    own, theirs = nn.Conv2d(4, 3, 3, padding=padding), nn.Conv2d(6, 3, 3, padding=padding)
    align = ChannelAlign(4, 6, norm=None)
    if not bias:
        nn.init.zeros_(align.layers[0].bias)
    feature = torch.randn(2, 4, 6, 5)
    expected = (own(feature) + theirs(align(feature))) / 2
    if padding and bias:
        with pytest.raises(ValueError, match=r"'conv_cls' is a convolution with a border of zeros.*Export without --fuse"):
            fuse_layer('conv_cls', own, TeacherClassifier.from_layer(theirs), *linear_part(align, 4))
        return
    fused = nn.Conv2d(4, 3, 3, padding=padding)
    fused.load_state_dict(own.state_dict())
    with torch.no_grad():
        fuse_layer('conv_cls', fused, TeacherClassifier.from_layer(theirs), *linear_part(align, 4))
    torch.testing.assert_close(fused(feature), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ('method', 'switches', 'error', 'words'),
    [
        ('VkDDistiller', {}, TypeError, 'Fusing expects a DSKDDistiller'),
        ('DSKDDistiller', dict(loss_weights=dict(anchor=0)), ValueError, 'trained by the anchor'),
        ('DSKDDistiller', dict(align=dict(kind='mlp')), ValueError, 'φ is not linear in evaluation'),
        ('DSKDDistiller', dict(align=dict(norm='GN')), ValueError, 'φ is not linear in evaluation'),
    ],
)
def test_what_has_no_mean_is_refused(tmp_path, method, switches, error, words):
    distiller = build_distiller(rival_config(method, 'gap', tmp_path, **switches))
    with pytest.raises(error, match=words):
        fuse_classifier(distiller)


@needs_mmdet
def test_dense_heads_with_a_border_are_refused_by_name(tmp_path):
    distiller, _ = trained('retinanet', tmp_path)
    with pytest.raises(ValueError, match=r"'bbox_head.retina_cls' is a convolution with a border of zeros"):
        fuse_classifier(distiller)


def test_the_command_writes_the_fused_student(tmp_path, capsys):
    distiller, _ = trained('gap', tmp_path)
    checkpoint, config, target = (str(tmp_path / name) for name in ('epoch_1.pth', 'distiller.py', 'student.pth'))
    torch.save(dict(state_dict=distiller.state_dict(), meta=dict(epoch=1)), checkpoint)
    model = rival_config('DSKDDistiller', 'gap', tmp_path)  # the same teacher: it is random by a fixed seed
    Config(dict(model=model, default_scope='mmpretrain')).dump(config)
    plain = dict(distiller.student.state_dict())
    export.main([checkpoint, target, '--config', config, '--fuse'])
    found = load_checkpoint_file(target)['state_dict']
    again, _ = trained('gap', tmp_path)
    again.load_state_dict(distiller.state_dict())
    fuse_classifier(again)
    torch.testing.assert_close(found, again.student.state_dict())
    assert {key for key in found if not torch.equal(found[key], plain[key])} == {'head.fc.weight', 'head.fc.bias'}
    with pytest.raises(SystemExit):
        export.main([checkpoint, target, '--fuse'])
    assert "--fuse needs the distiller's config" in capsys.readouterr().err
