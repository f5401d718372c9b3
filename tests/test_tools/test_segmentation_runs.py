"""Whole runs of segmenters: mmseg's scripts on a config of its users, and the repository's on the same."""

from pathlib import Path

import pytest

pytest.importorskip('mmseg')

import cv2
import mmseg
import numpy as np
import torch
from mmengine.config import Config
from mmseg.apis import inference_model, init_model

from dskd_mm.utils.checkpoint import load_checkpoint_file
from support import (
    DENSE_SIZE,
    EXISTING,
    named,
    predictions,
    run_script,
    scalars,
    segmentor_run_config,
    write_distiller_files,
    write_scenes,
)

ROOT = Path(__file__).parents[2]
TOOLS = ROOT / 'tools'
MMSEG_TOOLS = Path(mmseg.__file__).parent / '.mim' / 'tools'
LOSSES = {f'loss_dskd_{name}' for name in ('anchor', 'diff', 'lsh', 'logit')}


@pytest.fixture(scope='module')
def run(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A distillation by the script that mmseg ships; the teacher is gone afterwards."""
    folder = tmp_path_factory.mktemp('mmseg')
    data = write_scenes(folder / 'data')
    # Another head and another stride than the student's.
    teacher = segmentor_run_config('pspnet', data, width=6)
    config = write_distiller_files(folder, segmentor_run_config('fcn', data, stride=16), teacher, wide='conv_seg')
    run_script(MMSEG_TOOLS / 'train.py', config, '--work-dir', folder / 'work', '--cfg-options', *named('mmseg_train'))
    (folder / 'teacher.pth').unlink()
    balance(folder)
    return dict(folder=folder, config=config, plain=folder / EXISTING, checkpoint=folder / 'work/iter_2.pth')


def balance(folder: Path) -> None:
    """Shift the logits to the same mean for every class: after two iterations one class would be seen everywhere."""
    model = init_model(str(folder / EXISTING), str(folder / 'work/student_last.pth'), device='cpu')
    image = str(folder / 'data/val2017/000000000001.png')
    means = inference_model(model, image).seg_logits.data.mean(dim=(1, 2))
    for name, prefix in (('student_last', ''), ('iter_2', 'student.')):
        path = folder / 'work' / f'{name}.pth'
        checkpoint = load_checkpoint_file(str(path))
        checkpoint['state_dict'][f'{prefix}decode_head.conv_seg.bias'] -= means
        torch.save(checkpoint, path)


@pytest.fixture(scope='module')
def tested(run: dict[str, Path]) -> dict[str, Path]:
    """The distiller, tested by mmseg's own script, which also draws and writes its label maps."""
    folder = run['folder']
    arguments = ['--out', folder / 'maps', '--show-dir', folder / 'pictures', '--work-dir', folder / 'test']
    options = [*named('mmseg'), 'default_hooks.visualization.interval=1']  # OpenMMLab's mmseg draws every 50th batch
    run_script(MMSEG_TOOLS / 'test.py', run['config'], run['checkpoint'], *arguments, '--cfg-options', *options)
    return run


def test_mmsegs_own_script_distils_an_existing_config(run: dict[str, Path]) -> None:
    steps = [line for line in scalars(run['folder'] / 'work') if 'decode.loss_ce' in line]
    assert len(steps) == 2 and all(set(step) >= LOSSES | {'aux.loss_ce'} for step in steps)
    assert any('mIoU' in line for line in scalars(run['folder'] / 'work'))
    assert {key.split('.')[0] for key in load_checkpoint_file(str(run['checkpoint']))['state_dict']} >= {'student', 'diffusion'}


def test_mmsegs_own_script_tests_and_draws_the_distiller(tested: dict[str, Path]) -> None:
    assert len(list((tested['folder'] / 'pictures').rglob('*.png'))) == 2
    maps = label_maps(tested)
    assert len(maps) == 2 and all(len(np.unique(labels)) > 1 for labels in maps.values())


def label_maps(run: dict[str, Path]) -> dict[str, np.ndarray]:
    """The label maps that mmseg's script wrote, by the name of the image."""
    return {path.stem: cv2.imread(str(path), cv2.IMREAD_UNCHANGED) for path in (run['folder'] / 'maps').glob('*.png')}


@pytest.mark.parametrize(('config', 'checkpoint'), [('config', 'iter_2'), ('plain', 'iter_2'), ('plain', 'student_last')])
def test_the_repositorys_script_predicts_the_same(
    tested: dict[str, Path], tmp_path: Path, config: str, checkpoint: str
) -> None:
    out, path = tmp_path / 'out.pkl', tested['folder'] / 'work' / f'{checkpoint}.pth'
    options = ['--cfg-options', *named(f'{config}_{checkpoint}')]
    arguments = ['--out', out, '--show-dir', tmp_path / 'pictures', '--work-dir', tmp_path / 'test']
    run_script(TOOLS / 'test.py', tested[config], path, *arguments, *options)
    assert len(list((tmp_path / 'pictures').rglob('*.png'))) == 2
    expected, found = label_maps(tested), predictions(out)
    assert len(found) == 2
    for sample in found:
        np.testing.assert_array_equal(sample['pred_sem_seg']['data'][0].numpy(), expected[Path(sample['img_path']).stem])


def test_the_exported_student_is_mmsegs(tested: dict[str, Path]) -> None:
    model = init_model(str(tested['plain']), str(tested['folder'] / 'work/student_last.pth'), device='cpu')
    assert model.dataset_meta['classes'] == ('background', 'box', 'bar')
    for name, expected in label_maps(tested).items():
        found = inference_model(model, str(tested['folder'] / f'data/val2017/{name}.png')).pred_sem_seg.data[0]
        np.testing.assert_array_equal(found.numpy(), expected)


def test_test_time_augmentation(tested: dict[str, Path], tmp_path: Path) -> None:
    """By mmseg's script around the distiller, and by the repository's around its student."""
    maps, out = tmp_path / 'maps', tmp_path / 'out.pkl'
    arguments = ['--tta', '--work-dir', tmp_path, '--cfg-options']
    run_script(MMSEG_TOOLS / 'test.py', tested['config'], tested['checkpoint'], '--out', maps, *arguments, *named('tta1'))
    # Ours without the augmentation that mmseg's config names: it has a default, which is the same.
    cfg = Config.fromfile(tested['config'])
    for key in ('tta_model', 'tta_pipeline'):
        cfg.pop(key)
    cfg.dump(str(tmp_path / 'no_tta.py'))
    run_script(TOOLS / 'test.py', tmp_path / 'no_tta.py', tested['checkpoint'], '--out', out, *arguments, *named('tta2'))
    model = init_model(str(tested['plain']), str(tested['folder'] / 'work/student_last.pth'), device='cpu')
    for sample in predictions(out):
        merged = sample['pred_sem_seg']['data'].squeeze(0).numpy()
        picture = cv2.imread(str(maps / Path(sample['img_path']).name), cv2.IMREAD_UNCHANGED)
        np.testing.assert_array_equal(merged, picture)
        image = cv2.imread(sample['img_path'])
        sides = [inference_model(model, side).seg_logits.data.softmax(dim=0) for side in (image, image[:, ::-1].copy())]
        expected = (sides[0] + sides[1].flip(2)).argmax(dim=0)
        # Where two classes are all but equal, rounding decides.
        assert (expected.numpy() == merged).mean() > 0.99 and merged.shape == DENSE_SIZE


def test_the_repositorys_script_trains_by_iterations_and_resumes(tmp_path: Path) -> None:
    data, work_dir = write_scenes(tmp_path / 'data'), tmp_path / 'work'
    configs = [segmentor_run_config('segformer', data, width=width) for width in (4, 6)]
    command = [write_distiller_files(tmp_path, *configs, wide='conv_seg'), '--work-dir', work_dir]
    options = ['--cfg-options', 'train_cfg.val_interval=1', 'default_hooks.checkpoint.interval=1']
    run_script(TOOLS / 'train.py', *command, *options, 'train_cfg.max_iters=1', *named('segformer1'))
    run_script(TOOLS / 'train.py', *command, '--resume', *options, *named('segformer2'))
    steps = [line for line in scalars(work_dir) if 'loss_dskd_lsh' in line]
    assert [line['step'] for line in steps] == [2] and set(steps[0]) >= LOSSES
    last = load_checkpoint_file(str(work_dir / 'iter_2.pth'))
    assert int(last['state_dict']['iteration']) == 2 == last['meta']['iter']
    student = load_checkpoint_file(str(work_dir / 'student_last.pth'))
    assert student['meta']['iter'] == 2
    model = init_model(str(tmp_path / EXISTING), str(work_dir / 'student_last.pth'), device='cpu')
    assert all(bool(value.isfinite().all()) for value in model.state_dict().values())
