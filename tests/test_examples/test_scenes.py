"""Scenes of digits: what is written, that it is written once and whole, and that the hosts read it."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from mmengine.config import Config
from mmengine.registry import DATASETS, DefaultScope

from examples.digits import scenes as digit_scenes
from examples.digits.scenes import DigitScenes, write_digit_scenes

pytest.importorskip('sklearn')

ROOT = Path(__file__).parents[2]
SMALL = DigitScenes(num_train=6, num_test=3)


@pytest.fixture(scope='module')
def folder(tmp_path_factory) -> Path:
    return write_digit_scenes(tmp_path_factory.mktemp('scenes') / 'here', SMALL)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob('*')) if path.is_file()}


@pytest.mark.parametrize('part, count', [('train', 6), ('test', 3)])
def test_boxes_and_masks_say_the_same(folder, part, count):
    coco = json.loads((folder / f'annotations/{part}.json').read_text())
    assert len(coco['images']) == count and [category['id'] for category in coco['categories']] == list(range(1, 11))
    for image in coco['images']:
        picture = cv2.imread(str(folder / f'images/{part}' / image['file_name']))
        mask = cv2.imread(str(folder / f'masks/{part}' / image['file_name']), cv2.IMREAD_UNCHANGED)
        assert picture.shape == (64, 64, 3) and mask.shape == (64, 64) and picture.std() > 5
        boxes = [a for a in coco['annotations'] if a['image_id'] == image['id']]
        assert 1 <= len(boxes) <= SMALL.digits[1]
        inside = np.zeros_like(mask)
        for annotation in boxes:
            left, top, width, height = annotation['bbox']
            pixels = mask[top : top + height, left : left + width]
            inside[top : top + height, left : left + width] = 1
            assert set(np.unique(pixels)) == {0, annotation['category_id']}, 'no other digit in the box'
            edges = pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]
            assert all(edge.any() for edge in edges), 'no smaller box would do'
        assert not mask[inside == 0].any(), 'every digit has a box'
    assert len({annotation['id'] for annotation in coco['annotations']}) == len(coco['annotations'])


def test_scenes_follow_from_the_seed(folder, tmp_path):
    again = write_digit_scenes(tmp_path / 'again', SMALL)
    assert contents(again) == contents(folder)
    more = write_digit_scenes(tmp_path / 'more', DigitScenes(num_train=7, num_test=3))
    name = 'images/train/0005.png'
    assert (more / name).read_bytes() == (folder / name).read_bytes(), 'more scenes change none of the first'
    other = write_digit_scenes(tmp_path / 'other', DigitScenes(num_train=6, num_test=3, seed=1))
    assert (other / name).read_bytes() != (folder / name).read_bytes()


def test_train_and_test_share_no_digit(monkeypatch, tmp_path):
    used = []
    draw = digit_scenes.draw_scene
    monkeypatch.setattr(digit_scenes, 'draw_scene', lambda glyphs, *args: used.append(glyphs) or draw(glyphs, *args))
    write_digit_scenes(tmp_path / 'scenes', DigitScenes(num_train=1, num_test=1))
    train, test = ({glyph.tobytes() for glyph in glyphs} for glyphs in used)
    assert len(train) + len(test) > 1790 and not train & test


def test_what_is_complete_stays_and_other_settings_replace_it(tmp_path):
    folder = tmp_path / 'deep/scenes'
    write_digit_scenes(folder, SMALL)
    (folder / 'kept').touch()
    write_digit_scenes(folder, SMALL)
    assert (folder / 'kept').exists()
    write_digit_scenes(folder, DigitScenes(num_train=2, num_test=1))
    assert not (folder / 'kept').exists() and len(list((folder / 'images/train').iterdir())) == 2
    assert [path.name for path in folder.parent.iterdir()] == ['scenes'], 'nothing is left beside it'


def test_an_interruption_leaves_nothing(monkeypatch, tmp_path):
    def fail(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(digit_scenes, '_write_png', fail)
    with pytest.raises(KeyboardInterrupt):
        write_digit_scenes(tmp_path / 'scenes', SMALL)
    assert not list(tmp_path.iterdir())


def test_the_slower_of_two_processes_is_content(monkeypatch, tmp_path):
    folder = tmp_path / 'scenes'
    describe = digit_scenes._describe
    calls = []

    def overtaken(settings):
        calls.append(settings)
        # The second question is for the settings file of the new scenes: by then the other process is ready.
        if len(calls) == 1:
            write_digit_scenes(folder, SMALL)
        return describe(settings)

    write_digit_scenes(folder, DigitScenes(num_train=1, num_test=1))
    monkeypatch.setattr(digit_scenes, '_describe', overtaken)
    assert write_digit_scenes(folder, SMALL) == folder
    assert digit_scenes.is_complete(folder, SMALL)


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / 'thesis.tex').touch()
    with pytest.raises(FileExistsError, match=r'settings\.json'):
        write_digit_scenes(tmp_path, SMALL)
    assert (tmp_path / 'thesis.tex').exists()


@pytest.mark.parametrize('task, module', [('det', 'mmdet'), ('seg', 'mmseg')])
def test_the_hosts_read_them(folder, task, module):
    pytest.importorskip(module)
    cfg = Config.fromfile(ROOT / f'examples/digits/configs/{task}_teacher.py')
    for part, count in (('train', 6), ('test', 3)):
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            dataset = DATASETS.build(dict(cfg[f'{part}_dataloader'].dataset, data_root=str(folder)))
        assert len(dataset) == count and dataset.metainfo['classes'][-1] == '9'
        item = dataset[0]
        assert item['inputs'].shape == (3, 64, 64)
        mask = cv2.imread(str(folder / f'masks/{part}/0000.png'), cv2.IMREAD_UNCHANGED)
        if task == 'det':
            labels = item['data_samples'].gt_instances.labels.tolist()
            assert labels and {label + 1 for label in labels} == set(np.unique(mask)) - {0}
        else:
            np.testing.assert_array_equal(item['data_samples'].gt_sem_seg.data[0].numpy(), mask)


def test_the_tool_writes_what_it_is_told(monkeypatch, tmp_path, capsys):
    arguments = [str(tmp_path / 'scenes'), '--num-train', '2', '--num-test', '1', '--seed', '5']
    monkeypatch.setattr('sys.argv', ['digit_scenes.py', *arguments])
    digit_scenes.main()
    assert capsys.readouterr().out.strip() == str(tmp_path / 'scenes')
    assert digit_scenes.is_complete(tmp_path / 'scenes', DigitScenes(num_train=2, num_test=1, seed=5))
