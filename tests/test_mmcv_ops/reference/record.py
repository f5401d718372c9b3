"""Record what compiled operators return for all cases.

python tests/test_mmcv_ops/reference/record.py build/operators.so build/kernels.so

The modules are what build.py made of mmcv's sources, or the `_ext` of an mmcv compiled with CUDA. Of large tensors some
elements are kept.
"""

import argparse
import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from cases import cases  # noqa: E402
from operators import compared, patched, run_case  # noqa: E402


def load(paths: list[Path]) -> SimpleNamespace:
    """Return the functions of all the compiled modules."""
    functions: dict[str, object] = {}
    for path in paths:
        spec = importlib.util.spec_from_file_location(path.name.split('.')[0], path)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        functions.update(vars(module))
    return SimpleNamespace(**functions)


def record(ext: SimpleNamespace) -> dict[str, np.ndarray]:
    """Return the tensors of each case by 'case|dtype|number'; a dtype that an operator refuses is left out."""
    found: dict[str, np.ndarray] = {}
    with patched(ext):
        for name, case in cases().items():
            for dtype in () if case.live else (torch.float32, torch.float64):
                try:
                    results = run_case(name, case, dtype)
                except RuntimeError as error:
                    if 'expected scalar type' not in str(error):
                        raise
                    continue
                for number, result in enumerate(results):
                    found[f'{name}|{str(dtype)[6:]}|{number}'] = compared(result)
    return found


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('modules', type=Path, nargs='+', help='compiled modules')
    found = record(load(parser.parse_args().modules))
    np.savez_compressed(HERE / 'values.npz', **found)
    print(f'{len(found)} tensors, {(HERE / "values.npz").stat().st_size / 1000:.0f} kB')
