"""Necks whose levels have different widths: SSD and YOLOv3, by every method."""

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip('mmdet')

from mmengine.registry import MODELS

from dskd_mm.distillers import DSKDDistiller
from dskd_mm.features import ChannelAlign
from dskd_mm.testing import assert_distils
from dskd_mm.testing.checks import assert_nothing_is_unused, train
from support import assert_refused, build_distiller, dense_distiller_config, detection_batch, random_boxes, watch

NECK = dict(type='dskd_mm.NeckSite')
OBJECTS = [random_boxes(3), random_boxes(2, seed=1)]
WIDTHS = {'ssd': ((16, 32, 8, 8), (24, 48, 12, 12)), 'yolov3': ((16, 8, 4), (24, 12, 6))}
"""Channels of the student's levels and of the teacher's."""
LOSSES = dict(
    fitnet=dict(type='dskd_mm.FitNetLoss'),
    mgd=dict(type='dskd_mm.MGDLoss'),
    pkd=dict(type='dskd_mm.PKDLoss'),
    at=dict(type='dskd_mm.ATLoss'),
    cwd=dict(type='dskd_mm.CWDLoss'),
)
METHODS: dict[str, dict[str, Any]] = {
    'dskd': dict(type='dskd_mm.DSKDDistiller'),
    'dskd, the teacher as prior': dict(
        type='dskd_mm.DSKDDistiller', prior='teacher', detach=False, sampler=dict(noise='adapter'), lsh=dict(magnitude=1.0)
    ),
    'dskd, a bridge': dict(type='dskd_mm.DSKDDistiller', prior='teacher', diffusion=dict(type='dskd_mm.FeatureBridge')),
    'diffkd': dict(type='dskd_mm.DiffKDDistiller'),
    'vkd': dict(type='dskd_mm.VkDDistiller'),
    'vkd, layer norm': dict(type='dskd_mm.VkDDistiller', normalization='layernorm'),
    'sokd': dict(type='dskd_mm.SoKDDistiller'),
    'rtk': dict(type='dskd_mm.RTKDistiller'),
    'lshfm': dict(type='dskd_mm.LSHFMDistiller'),
    'losses': dict(type='dskd_mm.ConfigurableDistiller', distill_losses=LOSSES),
    'a layer': dict(
        type='dskd_mm.ConfigurableDistiller',
        layers=dict(neck={owner: dict(path='neck', index='all') for owner in ('student', 'teacher')}),
        distill_losses=dict(fitnet=dict(type='dskd_mm.FitNetLoss', on='neck')),
    ),
}


def configured(kind: str, directory: Path, **options: Any) -> Any:
    return dense_distiller_config(kind, str(directory), **{'site': NECK, **options})


@pytest.mark.parametrize('method', ['DSKDDistiller', 'LSHFMDistiller'])
def test_nothing_is_hashed_as_unseen_where_no_classifier_sees(tmp_path: Path, method: str) -> None:
    config = configured('ssd', tmp_path)
    config.update(type=f'dskd_mm.{method}', lsh=dict(project='null'))
    with pytest.raises(ValueError, match=f"project='null'.* of {method} .*NeckSite has none: leave project out"):
        build_distiller(config)


@pytest.mark.parametrize('kind', WIDTHS)
@pytest.mark.parametrize('method', METHODS)
def test_every_method_trains(tmp_path: Path, kind: str, method: str) -> None:
    config = configured(kind, tmp_path)
    config.update(METHODS[method])
    distiller = build_distiller(config)
    assert (distiller.student_spec.channels, distiller.teacher_spec.channels) == WIDTHS[kind]
    batch = detection_batch(distiller, OBJECTS)
    if isinstance(distiller, DSKDDistiller):
        assert_distils(distiller, batch)
    assert_nothing_is_unused(distiller, batch)
    first, *_, last = train(distiller, batch, steps=3)
    assert all(bool(value.isfinite()) for value in (*first.values(), *last.values()))
    assert any(float(value) > 0 for name, value in first.items() if name.startswith('loss_') and name != 'loss_student')


@pytest.mark.parametrize('kind', WIDTHS)
def test_there_is_one_denoiser_for_each_width(tmp_path: Path, kind: str) -> None:
    distiller = build_distiller(configured(kind, tmp_path))
    widths = list(dict.fromkeys(WIDTHS[kind][1]))
    assert [denoiser.channels for denoiser in distiller.diffusion.denoiser] == widths
    assert [lsh.projection.shape[1] for lsh in distiller.lsh] == widths


def test_the_head_judges_levels_of_their_own_widths(tmp_path: Path) -> None:
    distiller = build_distiller(configured('ssd', tmp_path))
    distiller.load_teacher()
    batch, teacher = detection_batch(distiller, OBJECTS), distiller.teacher.model
    seen = watch(teacher, 'loss')
    maps = watch(distiller.site, 'head_loss')
    distiller(**batch, mode='loss')
    assert seen and {tuple(level.shape[1] for level in call.args[1]) for call in maps} == {WIDTHS['ssd'][1]}


def test_an_autoencoder_is_refused_and_the_mend_trains(tmp_path: Path) -> None:
    config = configured('ssd', tmp_path, autoencoder=dict(latent_channels=8))
    assert_refused(config, lambda _: None, ['levels of one width', '(24, 48, 12, 12)', 'leave autoencoder out'])
    del config.autoencoder
    train(distiller := build_distiller(config), detection_batch(distiller, OBJECTS), steps=1)


def test_a_mean_over_levels_is_refused_and_the_mend_trains(tmp_path: Path) -> None:
    config = configured('ssd', tmp_path)
    config.update(type='dskd_mm.VkDDistiller', pool=True)
    assert_refused(config, lambda _: None, ['pool=True', '(16, 32, 8, 8)', 'set pool=False'])
    config.pool = False
    train(distiller := build_distiller(config), detection_batch(distiller, OBJECTS), steps=1)


@pytest.mark.parametrize('kind', WIDTHS)
def test_the_head_names_the_neck_which_works(tmp_path: Path, kind: str) -> None:
    config = configured(kind, tmp_path)
    assert_refused(config, lambda cfg: cfg.pop('site'), ["site=dict(type='dskd_mm.NeckSite')"])


def test_equal_channels_given_one_by_one_are_one_number(tmp_path: Path) -> None:
    config = configured('retinanet', tmp_path)
    config.site.channels = [8, 8, 8, 8, 8]
    distiller = MODELS.build(config)
    assert (distiller.student_spec.channels, distiller.student_spec.num_levels) == (8, 5)
    assert isinstance(distiller.align, ChannelAlign)
