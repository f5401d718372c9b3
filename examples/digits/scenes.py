"""Small scenes of scikit-learn's handwritten digits, with boxes and masks: data for detection and segmentation, no download.

`make demo` writes them by itself; ``python -m examples.digits.scenes`` writes them for trainings by hand.
"""

import argparse
import json
import os
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np

CLASSES = tuple('0123456789')
SETTINGS_FILE = 'settings.json'

# Raise it with every change of what is drawn: folders written before are then written anew.
VERSION = 3


@dataclass(frozen=True)
class DigitScenes:
    """Settings of the scenes.

    Attributes:
        num_train (int): Number of training scenes. Defaults to 800.
        num_test (int): Number of test scenes. Defaults to 200.
        size (int): Height and width in pixels. Defaults to 64.
        digits (tuple[int, int]): Fewest and most digits in a scene. Defaults to (1, 3).
        heights (tuple[int, int]): Smallest and largest height of a digit in pixels. Defaults to (18, 34).
        strokes (tuple[int, int]): Fewest and most pen strokes that are no digit. Defaults to (1, 3).
        fragments (tuple[int, int]): Fewest and most corners of digits. Defaults to (0, 2).
        seed (int): The scenes follow from it. Defaults to 0.
    """

    num_train: int = 800
    num_test: int = 200
    size: int = 64
    digits: tuple[int, int] = (1, 3)
    heights: tuple[int, int] = (18, 34)
    strokes: tuple[int, int] = (1, 3)
    fragments: tuple[int, int] = (0, 2)
    seed: int = 0


@dataclass
class Scene:
    """One image and its annotations.

    Attributes:
        image (np.ndarray): (size, size, 3), BGR, uint8.
        mask (np.ndarray): (size, size), uint8: 0 is background, k + 1 is the digit k.
        boxes (np.ndarray): (N, 4), int: left, top, width, height of the digits' pixels.
        labels (np.ndarray): (N, ), int: the digits.
    """

    image: np.ndarray
    mask: np.ndarray
    boxes: np.ndarray
    labels: np.ndarray


def write_digit_scenes(folder: str | Path, settings: DigitScenes | None = None) -> Path:
    """Write scenes as images, COCO annotations and label maps, unless the same ones are there already.

    Training scenes show the first half of scikit-learn's digits, test scenes the second half, which other people wrote::

        folder/images/{train,test}/0000.png     RGB images
        folder/masks/{train,test}/0000.png      label maps, 0 is background and k + 1 the digit k
        folder/annotations/{train,test}.json    COCO boxes, category k + 1 is the digit k
        folder/settings.json                    written last: what the scenes were made from

    The folder appears complete or not at all, also when several processes write it at once.

    Args:
        folder (str | Path): Where to. Scenes of other settings in it are replaced.
        settings (DigitScenes, optional): None takes the defaults. Defaults to None.

    Returns:
        Path: The folder.

    Raises:
        FileExistsError: If the folder holds something else than scenes.
    """
    folder, settings = Path(folder), settings or DigitScenes()
    if is_complete(folder, settings):
        return folder
    if folder.exists() and not (folder / SETTINGS_FILE).is_file() and any(folder.iterdir()):
        raise FileExistsError(
            f'Scenes are to be written to {str(folder)!r}, but it holds other files and has no {SETTINGS_FILE}. '
            'Choose another folder, or remove this one.'
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f'.{folder.name}-', dir=folder.parent) as scratch:
        new = Path(scratch) / 'new'
        for part in ('train', 'test'):
            _write_part(new, part, settings)
        (new / SETTINGS_FILE).write_text(json.dumps(_describe(settings), indent=2), encoding='utf-8')
        # A folder cannot be replaced in one operation unless it is empty.
        if folder.exists():
            os.replace(folder, Path(scratch) / 'old')
        try:
            os.replace(new, folder)
        except OSError:
            # Another process was faster; its scenes are as good as ours if they are the same.
            if not is_complete(folder, settings):
                raise
    return folder


def is_complete(folder: str | Path, settings: DigitScenes) -> bool:
    """Whether the folder holds exactly these scenes."""
    path = Path(folder) / SETTINGS_FILE
    return path.is_file() and json.loads(path.read_text(encoding='utf-8')) == _describe(settings)


def _describe(settings: DigitScenes) -> dict:
    # Through JSON, which turns tuples into lists.
    return json.loads(json.dumps(dict(version=VERSION, **asdict(settings))))


def _write_part(folder: Path, part: str, settings: DigitScenes) -> None:
    from sklearn.datasets import load_digits

    digits = load_digits()
    border = round(len(digits.target) / 2)
    own = slice(border) if part == 'train' else slice(border, None)
    glyphs, labels = (digits.images[own] / 16).astype(np.float32), digits.target[own]

    for kind in ('images', 'masks'):
        (folder / kind / part).mkdir(parents=True)
    (folder / 'annotations').mkdir(exist_ok=True)
    images: list[dict] = []
    annotations: list[dict] = []
    for index in range(settings.num_train if part == 'train' else settings.num_test):
        # Each scene has a generator of its own: more scenes change none of the first.
        generator = np.random.default_rng([settings.seed, part == 'test', index])
        scene = draw_scene(glyphs, labels, settings, generator)
        name = f'{index:04d}.png'
        _write_png(folder / 'images' / part / name, scene.image)
        _write_png(folder / 'masks' / part / name, scene.mask)
        images.append(dict(id=index, file_name=name, width=settings.size, height=settings.size))
        for box, label in zip(scene.boxes.tolist(), scene.labels.tolist(), strict=True):
            fields = dict(category_id=label + 1, bbox=box, area=box[2] * box[3], iscrowd=0)
            annotations.append(dict(id=len(annotations) + 1, image_id=index, **fields))
    categories = [dict(id=k + 1, name=name) for k, name in enumerate(CLASSES)]
    content = dict(images=images, annotations=annotations, categories=categories)
    (folder / 'annotations' / f'{part}.json').write_text(json.dumps(content), encoding='utf-8')


def _write_png(path: Path, image: np.ndarray) -> None:
    if not cv2.imwrite(str(path), image):
        raise OSError(f'Cannot write {path}.')


def draw_scene(glyphs: np.ndarray, labels: np.ndarray, settings: DigitScenes, generator: np.random.Generator) -> Scene:
    """Draw one scene: a shaded ground, clutter that is no digit, digits, noise.

    Args:
        glyphs (np.ndarray): (M, 8, 8), float32, 0...1: the digits to choose from.
        labels (np.ndarray): (M, ): which digits they are.
        settings (DigitScenes): Size of the scene, number and heights of digits.
        generator (np.random.Generator): Source of all choices.

    Returns:
        Scene: The image and its annotations.
    """
    size = settings.size
    ground = generator.uniform(10, 90, 3) + generator.uniform(-30, 30, (4, 4, 3))
    canvas = cv2.resize(ground.astype(np.float32), (size, size), interpolation=cv2.INTER_CUBIC)
    for _ in range(generator.integers(settings.strokes[0], settings.strokes[1] + 1)):
        _blend(canvas, _stroke(size, generator), _ink(generator))
    for _ in range(generator.integers(settings.fragments[0], settings.fragments[1] + 1)):
        _blend(canvas, _fragment(glyphs, size, generator), _ink(generator))

    mask = np.zeros((size, size), np.uint8)
    taken = np.zeros((size, size), bool)
    boxes, chosen = [], []
    for _ in range(generator.integers(settings.digits[0], settings.digits[1] + 1)):
        which = int(generator.integers(len(glyphs)))
        # A few tries to find a free place; a crowded scene gets fewer digits.
        for _ in range(10):
            alpha = _place(glyphs[which], generator.uniform(*settings.heights), generator.uniform(-12, 12), size, generator)
            inside = alpha > 0.4
            left, top, width, height = cv2.boundingRect(inside.astype(np.uint8))
            box = np.s_[top : top + height, left : left + width]
            if width and height and not taken[box].any():
                taken[box] = True
                break
        else:
            continue
        _blend(canvas, alpha, _ink(generator))
        mask[inside] = labels[which] + 1
        boxes.append((left, top, width, height))
        chosen.append(labels[which])
    canvas += generator.normal(0, 8, canvas.shape)
    return Scene(
        image=canvas.clip(0, 255).astype(np.uint8),
        mask=mask,
        boxes=np.array(boxes, int).reshape(-1, 4),
        labels=np.array(chosen, int),
    )


def _ink(generator: np.random.Generator) -> np.ndarray:
    """A light colour (3, ): dim or bright, more or less tinted."""
    return generator.uniform(160, 255) - generator.uniform(0, 60, 3)


def _blend(canvas: np.ndarray, alpha: np.ndarray, ink: np.ndarray) -> None:
    """Paint ink (3, ) on a canvas (H, W, 3) where alpha (H, W) says so, in place."""
    canvas += alpha[..., None] * (ink - canvas)


def _stroke(size: int, generator: np.random.Generator) -> np.ndarray:
    """Opacity (size, size) of a curved pen stroke."""
    start, end = generator.uniform(0, size, (2, 2))
    # Long strokes hide too much, and short ones look like parts of digits, as they should.
    end = start + (end - start) * 0.6
    bend = (start + end) / 2 + generator.normal(0, size / 10, 2)
    t = np.linspace(0, 1, 12)[:, None]
    points = (1 - t) ** 2 * start + 2 * t * (1 - t) * bend + t**2 * end
    alpha = np.zeros((size, size), np.float32)
    cv2.polylines(alpha, [points.round().astype(np.int32)], False, 1.0, int(generator.integers(1, 4)), cv2.LINE_AA)
    # LINE_AA smooths images of bytes only.
    return cv2.GaussianBlur(alpha, (3, 3), 0) * generator.uniform(0.4, 0.9)


def _fragment(glyphs: np.ndarray, size: int, generator: np.random.Generator) -> np.ndarray:
    """Opacity (size, size) of a corner of a digit: too little to tell which."""
    glyph = glyphs[generator.integers(len(glyphs))]
    row, column = generator.integers(0, 5, 2)
    corner = np.zeros_like(glyph)
    corner[2:6, 2:6] = glyph[row : row + 4, column : column + 4]
    alpha = _place(corner, generator.uniform(size / 4, size / 2.4), generator.uniform(-180, 180), size, generator)
    return alpha * generator.uniform(0.5, 0.9)


def _place(glyph: np.ndarray, height: float, angle: float, size: int, generator: np.random.Generator) -> np.ndarray:
    """Opacity (size, size) of a glyph (8, 8) that is enlarged, turned by an angle in degrees, and put anywhere inside."""
    # scikit-learn's digits fill their 8 rows; the glyph's middle, (3.5, 3.5), goes to the centre.
    margin = height / 2
    x, y = generator.uniform(margin, size - margin, 2)
    matrix = cv2.getRotationMatrix2D((3.5, 3.5), angle, height / 8)
    matrix[:, 2] += (x - 3.5, y - 3.5)
    alpha = cv2.warpAffine(glyph, matrix, (size, size), flags=cv2.INTER_CUBIC, borderValue=0)
    # More contrast than the scans have after enlarging, for edges that say where a digit ends.
    return ((alpha - 0.15) / 0.6).clip(0, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path('work_dirs/demo/data/digit_scenes')
    parser.add_argument('folder', type=Path, nargs='?', default=default, help=f'where to; default: {default}')
    for name in ('num_train', 'num_test', 'size', 'seed'):
        value = getattr(DigitScenes(), name)
        parser.add_argument(f'--{name.replace("_", "-")}', type=int, default=value, help=f'default: {value}')
    settings = vars(parser.parse_args())
    print(write_digit_scenes(settings.pop('folder'), DigitScenes(**settings)))


if __name__ == '__main__':
    main()
