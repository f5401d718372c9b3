"""Write the scenes of handwritten digits that the demo's detectors and segmenters are trained on.

`make demo` does it by itself. Scenes of the same settings that are there already are kept.
"""

import argparse
from pathlib import Path

from dskd_mm.datasets import DigitScenes, write_digit_scenes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    default = Path('work_dirs/demo/data/digit_scenes')
    parser.add_argument('folder', type=Path, nargs='?', default=default, help=f'where to; default: {default}')
    for name in ('num_train', 'num_test', 'size', 'seed'):
        value = getattr(DigitScenes(), name)
        parser.add_argument(f'--{name.replace("_", "-")}', type=int, default=value, help=f'default: {value}')
    settings = vars(parser.parse_args())
    print(write_digit_scenes(settings.pop('folder'), DigitScenes(**settings)))


if __name__ == '__main__':
    main()
