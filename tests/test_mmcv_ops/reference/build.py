"""Compile the operators that dskd_mm.mmcv_ops replaces from mmcv's own sources, for the CPU, in a few minutes.

python tests/test_mmcv_ops/reference/build.py onedl_mmcv-2.3.6/ build/

It writes two modules: operators.so, mmcv's operators of the CPU, and kernels.so, those that it has for CUDA only, whose kernels
are compiled as loops. The sources are those of the sdist:
pip download --no-deps --no-binary :all: --no-build-isolation onedl-mmcv==2.3.6
"""

import argparse
import re
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path

import torch

HERE = Path(__file__).parent
OF_THE_CPU = (
    *('nms', 'softnms', 'nms_match', 'roi_align_forward', 'roi_align_backward', 'deform_conv_forward'),
    *('deform_conv_backward_input', 'deform_conv_backward_parameters', 'modulated_deform_conv_forward'),
    *('modulated_deform_conv_backward', 'psamask_forward', 'psamask_backward', 'bbox_overlaps'),
)


def definitions(pybind: str) -> str:
    """Return the lines of mmcv's pybind.cpp that define the operators of the CPU."""
    found = [re.search(rf'  m\.def\("{name}",.*?\);\n', pybind, re.DOTALL) for name in OF_THE_CPU]
    return ''.join(match[0] for match in found if match)


def build(source: Path, target: Path) -> None:
    """Compile both modules from the unpacked sdist `source` to the folder `target`."""
    csrc = source.resolve() / 'mmcv' / 'ops' / 'csrc'
    if not csrc.is_dir():
        raise SystemExit(f'{source} is no unpacked sdist of mmcv: it has no folder mmcv/ops/csrc.')
    target.mkdir(parents=True, exist_ok=True)
    include = Path(torch.__file__).parent / 'include'
    common = [include, include / 'torch/csrc/api/include', Path(sysconfig.get_path('include'))]
    libraries = ['-L', str(include.parent / 'lib'), '-ltorch', '-ltorch_cpu', '-lc10', '-ltorch_python']
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        (scratch / 'definitions.inc').write_text(definitions((csrc / 'pytorch/pybind.cpp').read_text()))
        for kernel in (csrc / 'common' / 'cuda').glob('*_cuda_kernel.cuh'):
            shutil.copy(kernel, scratch)  # away from mmcv's headers, whose place those of include/ take
        for name, level, folders in (
            ('operators', '-O2', [csrc, csrc / 'common', csrc / 'pytorch', scratch]),
            ('kernels', '-O0', [HERE / 'include', scratch]),
        ):
            flags = [level, '-std=c++20', '-fPIC', '-w', '-shared', '-DTORCH_API_INCLUDE_EXTENSION_H']
            includes = [flag for path in (*folders, *common) for flag in ('-I', str(path))]
            output = ['-o', str(target / f'{name}.so')]
            subprocess.run(['g++', *flags, *includes, str(HERE / f'{name}.cpp'), *output, *libraries], check=True)


if __name__ == '__main__':
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', type=Path, help='the unpacked sdist of mmcv')
    parser.add_argument('target', type=Path, help='the folder to write the modules to')
    args = parser.parse_args()
    build(args.source, args.target)
