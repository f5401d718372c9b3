"""Whole runs of detectors: the repository's own config on COCO's layout, and mmdet's scripts on configs of its users."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip('mmdet')

import mmdet
import torch
from mmdet.apis import inference_detector, init_detector
from mmdet.datasets import CocoDataset
from mmengine.config import Config
from mmengine.registry import MODELS

from dskd_mm.utils.checkpoint import load_checkpoint_file
from dskd_mm.utils.config import load_config, model_config, resolve_config_path
from support import (
    DENSE_SIZE,
    EXISTING,
    detector_run_config,
    named,
    predictions,
    run_script,
    scalars,
    write_distiller_files,
    write_scenes,
)

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / 'tools'
MMDET_TOOLS = Path(mmdet.__file__).parent / '.mim' / 'tools'
LOSSES = {f'loss_dskd_{name}' for name in ('anchor', 'diff', 'lsh', 'logit')}


def assert_same_boxes(left: Any, right: Any) -> None:
    for key in ('bboxes', 'scores', 'labels'):
        torch.testing.assert_close(left[key], right[key])


def existing_config(kind: str, folder: Path) -> Path:
    """A user's folder: data, the config of a plain detector, the config and weights of a wider one, and the distiller's."""
    data = write_scenes(folder / 'data')
    teacher = detector_run_config(kind, data, width=6)
    return write_distiller_files(folder, detector_run_config(kind, data), teacher, wide='cls')


# The user's own example.


@pytest.fixture(scope='module')
def coco(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """configs/dskd/retinanet_r101_r50.py in full width, trained for two iterations, and for two more after resuming."""
    folder = tmp_path_factory.mktemp('coco')
    data = write_scenes(folder / 'data', CocoDataset.METAINFO['classes'], num_train=5)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        teacher = MODELS.build(model_config(load_config('mmdet::retinanet/retinanet_r101_fpn_2x_coco.py')))
    torch.save(dict(state_dict=teacher.state_dict()), folder / 'teacher.pth')
    del teacher
    options = [
        f'model.teacher.checkpoint={folder}/teacher.pth',
        'model.student.backbone.init_cfg=None',
        'model.student.test_cfg.score_thr=0.0',
        'train_dataloader.dataset.pipeline.2.scale=(96,64)',
        'default_hooks.logger.interval=1',
        'default_hooks.checkpoint.max_keep_ckpts=1',
    ]
    for part in ('train', 'val', 'test'):
        options += [f'{part}_dataloader.dataset.data_root={data}/']
        options += [f'{part}_dataloader.num_workers=0', f'{part}_dataloader.persistent_workers=False']
        if part != 'train':
            options += [f'{part}_evaluator.ann_file={data}/annotations/instances_val2017.json']
            options += [f'{part}_dataloader.dataset.pipeline.1.scale=(96,64)']
    config, work_dir = ROOT / 'configs/dskd/retinanet_r101_r50.py', folder / 'work'
    command = [config, '--work-dir', work_dir, '--cfg-options', *options]
    run_script(TOOLS / 'train.py', *command, 'train_cfg.max_epochs=1', *named('coco'))
    first = scalars(work_dir)
    saved = load_checkpoint_file(str(work_dir / 'epoch_1.pth'))
    run_script(TOOLS / 'train.py', *command, 'train_cfg.max_epochs=2', *named('resumed'), '--resume')
    (folder / 'teacher.pth').unlink()
    options[0] = 'model.teacher.checkpoint=gone.pth'
    yield dict(config=config, work_dir=work_dir, data=data, options=options, first=first, saved=saved)
    # Half a gigabyte, which pytest would keep for three sessions.
    shutil.rmtree(work_dir)


@pytest.mark.slow
def test_the_coco_config_trains_saves_and_resumes(coco: dict[str, Any]) -> None:
    steps = [line for line in coco['first'] if 'loss_dskd_lsh' in line]
    assert len(steps) == 2  # 4 of 5 images have objects, two in a batch
    assert set(steps[0]) >= LOSSES | {'loss_cls', 'loss_bbox', 'dskd_std'}
    assert int(coco['saved']['state_dict']['iteration']) == 2
    assert not any('teacher' in key for key in coco['saved']['state_dict'])
    resumed = [line for line in scalars(coco['work_dir']) if 'loss_dskd_lsh' in line]
    assert [line['step'] for line in resumed] == [3, 4] and {line['epoch'] for line in resumed} == {2}
    last = load_checkpoint_file(str(coco['work_dir'] / 'epoch_2.pth'))
    assert int(last['state_dict']['iteration']) == 4 == last['meta']['iter']
    assert any('coco/bbox_mAP' in line for line in coco['first'])


@pytest.mark.slow
def test_the_coco_config_is_tested_and_its_student_is_mmdets(coco: dict[str, Any], tmp_path: Path) -> None:
    work_dir, out = coco['work_dir'], tmp_path / 'out.pkl'
    options = ['--work-dir', tmp_path, '--cfg-options', *coco['options']]
    run_script(TOOLS / 'test.py', coco['config'], work_dir / 'epoch_2.pth', '--out', out, *options)
    metrics = tmp_path / 'metrics.json'
    items = ['--out', metrics, '--out-item', 'metrics']
    run_script(TOOLS / 'test.py', coco['config'], work_dir / 'student_last.pth', *items, *options)
    validation = [line for line in scalars(work_dir) if 'coco/bbox_mAP' in line][-1]
    tested = json.loads(metrics.read_text())
    assert {'coco/bbox_mAP', 'coco/bbox_mAP_50', 'coco/bbox_mAP_s'} <= set(tested)
    assert {key: validation[key] for key in tested} == tested

    cfg = Config.fromfile(resolve_config_path('mmdet::retinanet/retinanet_r50_fpn_2x_coco.py'))
    cfg.model.test_cfg.score_thr = 0.0
    cfg.test_dataloader.dataset.pipeline[1].scale = DENSE_SIZE[::-1]
    model = init_detector(cfg, str(work_dir / 'student_last.pth'), device='cpu')
    assert model.dataset_meta['classes'] == CocoDataset.METAINFO['classes']
    for expected in predictions(out):
        found = inference_detector(model, expected['img_path']).pred_instances
        assert len(found) == 100
        assert_same_boxes(found, expected['pred_instances'])


# An existing config under mmdet's own scripts.


@pytest.fixture(scope='module')
def run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A distillation by the script that mmdet ships; the teacher is gone afterwards."""
    folder = tmp_path_factory.mktemp('mmdet')
    config = existing_config('retinanet', folder)
    run_script(MMDET_TOOLS / 'train.py', config, '--work-dir', folder / 'work', '--cfg-options', *named('mmdet'))
    (folder / 'teacher.pth').unlink()
    return dict(folder=folder, config=config, plain=folder / EXISTING, checkpoint=folder / 'work/epoch_2.pth')


def test_mmdets_own_script_distils_an_existing_config(run: dict[str, Path]) -> None:
    steps = [line for line in scalars(run['folder'] / 'work') if 'loss_cls' in line]
    assert len(steps) == 4 and all(set(step) >= LOSSES for step in steps)
    assert {key.split('.')[0] for key in load_checkpoint_file(str(run['checkpoint']))['state_dict']} >= {'student', 'diffusion'}


@pytest.fixture(scope='module')
def tested(run: dict[str, Path]) -> dict[str, Path]:
    """The distiller, tested by mmdet's own script, which also draws."""
    out, pictures = run['folder'] / 'mmdet.pkl', run['folder'] / 'pictures'
    options = [
        '--out',
        out,
        '--show-dir',
        pictures,
        '--work-dir',
        run['folder'] / 'test',
        '--cfg-options',
        'experiment_name=m1',
    ]
    run_script(MMDET_TOOLS / 'test.py', run['config'], run['checkpoint'], *options)
    return {**run, 'out': out}


def test_mmdets_own_script_tests_and_draws_the_distiller(tested: dict[str, Path]) -> None:
    assert len(predictions(tested['out'])) == 2
    assert len(list((tested['folder'] / 'pictures').glob('*.png'))) == 2


@pytest.mark.parametrize('config', ['config', 'plain'])
def test_the_repositorys_script_predicts_the_same(tested: dict[str, Path], tmp_path: Path, config: str) -> None:
    out = tmp_path / 'ours.pkl'
    arguments = ['--out', out, '--show-dir', tmp_path / 'pictures', '--work-dir', tmp_path]
    run_script(TOOLS / 'test.py', tested[config], tested['checkpoint'], *arguments)
    assert len(list((tmp_path / 'pictures').glob('*.png'))) == 2
    for ours, theirs in zip(predictions(out), predictions(tested['out']), strict=True):
        assert len(ours['pred_instances']['scores']) == 5
        assert_same_boxes(ours['pred_instances'], theirs['pred_instances'])


def test_test_time_augmentation(tested: dict[str, Path], tmp_path: Path) -> None:
    """By mmdet's script around the distiller, and by the repository's around its student."""
    outs = tmp_path / 'mmdet.pkl', tmp_path / 'ours.pkl'
    arguments = ['--tta', '--work-dir', tmp_path, '--out']
    options = ['--cfg-options', *named('tta')]
    run_script(MMDET_TOOLS / 'test.py', tested['config'], tested['checkpoint'], *arguments, outs[0], *options)
    # Neither config names an augmentation: both have defaults.
    run_script(TOOLS / 'test.py', tested['config'], tested['checkpoint'], *arguments, outs[1])
    added = []
    for ours, theirs, plain in zip(*map(predictions, [*outs, tested['out']]), strict=True):
        assert_same_boxes(ours['pred_instances'], theirs['pred_instances'])
        added.append(len(ours['pred_instances']['scores']) - len(plain['pred_instances']['scores']))
    # Of both flips together; in one image all may overlap.
    assert min(added) >= 0 and sum(added) > 0


# Instance segmentation.


def test_instance_segmentation(tmp_path: Path) -> None:
    config, work_dir, out = existing_config('mask_rcnn', tmp_path), tmp_path / 'work', tmp_path / 'out.pkl'
    run_script(TOOLS / 'train.py', config, '--work-dir', work_dir, '--cfg-options', *named('mask'))
    steps = [line for line in scalars(work_dir) if 'loss_mask' in line]
    assert len(steps) == 4 and all(set(step) >= LOSSES for step in steps)
    (tmp_path / 'teacher.pth').unlink()
    arguments = ['--out', out, '--show-dir', tmp_path / 'pictures', '--work-dir', tmp_path / 'test']
    run_script(TOOLS / 'test.py', config, work_dir / 'epoch_2.pth', *arguments)
    assert len(list((tmp_path / 'pictures').glob('*.png'))) == 2
    validation = [line for line in scalars(work_dir) if 'coco/bbox_mAP' in line][-1]
    assert {'coco/segm_mAP', 'coco/segm_mAP_50'} <= set(validation)
    model = init_detector(str(tmp_path / EXISTING), str(work_dir / 'student_last.pth'), device='cpu')
    for expected in predictions(out):
        found = inference_detector(model, expected['img_path']).pred_instances
        assert found.masks.shape == (5, *DENSE_SIZE)
        assert_same_boxes(found, expected['pred_instances'])
