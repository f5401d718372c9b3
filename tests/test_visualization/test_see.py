"""`dskd see` from the command to its pictures, for each task, on images from files."""

import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from mmengine.structures import BaseDataElement, InstanceData, PixelData

from dskd_mm.cli import see
from dskd_mm.testing import random_teacher
from dskd_mm.utils.checkpoint import export_student
from dskd_mm.utils.config import model_config
from dskd_mm.visualization import grid
from dskd_mm.visualization.images import in_class_order
from support import (
    SCENE_CLASSES,
    detector_run_config,
    distiller_run_config,
    plain_run_config,
    run_process,
    segmentor_run_config,
    write_distiller_files,
    write_scenes,
)

ALL = {'predictions', 'maps', 'plane', 'steps'}


def save(cfg: Config, folder: Path, name: str, classes: tuple[str, ...]) -> tuple[Path, Path]:
    """Write a config and a checkpoint of its model with random weights."""
    config, checkpoint = folder / f'{name}.py', folder / f'{name}.pth'
    if not config.exists():
        cfg.dump(str(config))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = MODELS.build(model_config(cfg))
    torch.save(dict(state_dict=model.state_dict(), meta=dict(dataset_meta=dict(classes=classes))), checkpoint)
    return config, checkpoint


def classifier(folder: Path, **options) -> tuple[Path, Path, list[Path]]:
    names = tuple(f'pattern {k}' for k in range(5))
    files = []
    for index in range(3):
        files.append(folder / f'{index}.png')
        noise = np.random.default_rng(index).integers(0, 255, (16, 16, 3), dtype=np.uint8)
        cv2.imwrite(str(files[-1]), noise)
    return *save(distiller_run_config(str(folder), **options), folder, 'distiller', names), files


def dense(folder: Path, kind: str, **model) -> tuple[Path, Path, list[Path]]:
    run_config = segmentor_run_config if kind == 'fcn' else detector_run_config
    data = write_scenes(folder / 'data')
    path = write_distiller_files(folder, run_config(kind, data), run_config(kind, data, width=6), wide='cls|conv_seg')
    cfg = Config.fromfile(path)
    cfg.model.update(model)
    path.unlink()
    classes = ('background', *SCENE_CLASSES[1:]) if kind == 'fcn' else SCENE_CLASSES
    return *save(cfg, folder, 'distiller', classes), sorted((data / 'val2017').glob('*.png'))


def check(folder: Path, expected: set[str]) -> None:
    assert {path.stem for path in folder.glob('*.png')} == expected
    for path in folder.glob('*.png'):
        picture = cv2.imread(str(path))
        assert min(picture.shape[:2]) > 100 and picture.reshape(-1, 3).std(axis=0).min() > 5, f'{path.name} is blank'


def test_the_command_on_a_classifier(tmp_path: Path) -> None:
    config, checkpoint, images = classifier(tmp_path)
    (tmp_path / 'plain').mkdir()
    plain = save(plain_run_config(str(tmp_path / 'plain')), tmp_path / 'plain', 'plain', ())
    printed = run_process(sys.executable, '-m', 'dskd_mm', 'see', config, checkpoint, *images, '--plain', *plain)
    check(tmp_path / 'see', ALL)
    assert str(tmp_path / 'see/maps.png') in printed and 'Not drawn' not in printed


@pytest.mark.parametrize(
    ('kind', 'model', 'expected'),
    [
        ('retinanet', {}, ALL),
        ('faster_rcnn', {}, ALL - {'maps'}),
        ('mask_rcnn', {}, ALL - {'maps'}),
        ('retinanet', dict(site=dict(type='dskd_mm.NeckSite')), ALL - {'steps'}),
        ('fcn', {}, ALL),
    ],
    ids=['one stage', 'two stages', 'masks', 'neck', 'segmenter'],
)
def test_dense_tasks(tmp_path: Path, monkeypatch, capsys, kind: str, model: dict, expected: set[str]) -> None:
    pytest.importorskip('mmseg' if kind == 'fcn' else 'mmdet')
    monkeypatch.setattr('dskd_mm.visualization.images.SURE', 0.0)  # random detectors are sure of nothing
    config, checkpoint, images = dense(tmp_path, kind, **model)
    see.main([str(config), str(checkpoint), *map(str, images), '--out', str(tmp_path / 'out')])
    check(tmp_path / 'out', expected)
    assert ('Not drawn' in capsys.readouterr().out) is (expected != ALL)


@pytest.mark.parametrize('kind', ['retinanet', 'faster_rcnn'])
def test_an_image_in_which_nothing_is_found(tmp_path: Path, kind: str) -> None:
    pytest.importorskip('mmdet')
    config, checkpoint, images = dense(tmp_path, kind)
    see.main([str(config), str(checkpoint), str(images[0]), '--out', str(tmp_path / 'out')])
    assert (tmp_path / 'out/predictions.png').is_file()


def test_each_of_several_teachers_has_a_row(tmp_path: Path, monkeypatch) -> None:
    teachers = []
    for seed in range(2):
        (tmp_path / f'{seed}').mkdir()
        teachers.append(random_teacher(str(tmp_path / f'{seed}'), seed=seed))
    config, checkpoint, images = classifier(tmp_path, teacher=teachers)
    rows = []
    monkeypatch.setattr(see, 'grid', lambda found: rows.extend(found) or grid(found))
    see.main([str(config), str(checkpoint), str(images[0]), '--out', str(tmp_path / 'out')])
    assert rows == ['Distilled student', 'Teacher 1', 'Teacher 2']
    assert {path.stem for path in (tmp_path / 'out').glob('*.png')} >= {'predictions', 'maps', 'steps'}


def test_another_method_shows_predictions(tmp_path: Path, capsys) -> None:
    config, checkpoint, images = classifier(tmp_path)
    cfg = Config.fromfile(config)
    cfg.model.type = 'dskd_mm.VkDDistiller'
    config.unlink()
    config, checkpoint = save(cfg, tmp_path, 'vkd', ())
    see.main([str(config), str(checkpoint), *map(str, images)])
    check(tmp_path / 'see', {'predictions'})
    assert 'Not drawn, as this distiller has nothing for them: maps, plane, steps.' in capsys.readouterr().out


def test_mistakes_are_told_with_their_mend(tmp_path: Path) -> None:
    config, checkpoint, images = classifier(tmp_path)
    export_student(str(checkpoint), str(tmp_path / 'student_last.pth'))
    with pytest.raises(SystemExit, match=r'lacks \d+ of its tensors, .* student_last.pth holds the student alone'):
        see.main([str(config), str(tmp_path / 'student_last.pth'), str(images[0])])
    (tmp_path / 'plain').mkdir()
    plain, weights = save(plain_run_config(str(tmp_path / 'plain')), tmp_path / 'plain', 'plain', ())
    with pytest.raises(SystemExit, match=r"expects a distiller's config, .* ImageClassifier.* --plain CONFIG CHECKPOINT"):
        see.main([str(plain), str(weights), str(images[0])])
    cfg = Config.fromfile(config)
    cfg.test_dataloader = None
    cfg.dump(str(tmp_path / 'untested.py'))
    with pytest.raises(SystemExit, match='Expected a test_dataloader with a pipeline'):
        see.main([str(tmp_path / 'untested.py'), str(checkpoint), str(images[0])])
    with pytest.raises(SystemExit, match=r'nowhere\.png'):
        see.main([str(config), str(checkpoint), str(tmp_path / 'nowhere.png')])
    (tmp_path / 'text.png').write_text('no image')
    with pytest.raises(SystemExit, match=r'^see: Expected an image that OpenCV reads at .*text\.png'):
        see.main([str(config), str(checkpoint), str(tmp_path / 'text.png')])


def test_predictions_of_a_teacher_in_the_students_order() -> None:
    pytest.importorskip('mmpretrain')
    from mmpretrain.structures import DataSample

    sample = DataSample().set_pred_score(torch.tensor([0.1, 0.2, 0.7])).set_pred_label(2)
    found = in_class_order(sample, (2, 0))
    assert found.pred_score.tolist() == pytest.approx([0.7, 0.1]) and int(found.pred_label) == 0
    assert in_class_order(sample, ()) is sample
    boxes = InstanceData(labels=torch.tensor([1, 0, 2]), scores=torch.tensor([0.9, 0.8, 0.7]))
    detected = in_class_order(BaseDataElement(pred_instances=boxes), (2, 0)).pred_instances
    assert detected.labels.tolist() == [1, 0] and detected.scores.tolist() == pytest.approx([0.8, 0.7])
    maps = dict(seg_logits=PixelData(data=torch.eye(3)[..., None]), pred_sem_seg=PixelData(data=torch.zeros(1, 3, 1)))
    labels = in_class_order(BaseDataElement(**maps), (2, 0)).pred_sem_seg.data
    assert labels[0, 2, 0] == 0 and labels[0, 0, 0] == 1
