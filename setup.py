"""Package metadata, extras and the `.mim` layout of dskd_mm."""

import os
import re
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent
MIM_FILES = ('configs', 'tools', 'model-index.yml')

# The OpenMMLab packages and their maintained continuation by OneDL share import names
# (mmengine, mmcv, mmdet, ...) but not distribution names. A hard requirement on one would be
# installed over the other, so the hosts are extras and are looked for at import time. torch is
# no hard requirement either, as in the hosts themselves: which build of it (CUDA, ROCm, CPU) is
# a choice to make first. It needs 2.5 or newer; constraints.txt has the one to take.
INSTALL_REQUIRES = ['numpy', 'rich']

# The stack that constraints.txt pins and `make env` installs.
ONEDL = ['onedl-mmengine>=0.10.10', 'onedl-mmcv>=2.3']
CLS = [*ONEDL, 'onedl-mmpretrain>=1.3']
DET = [*ONEDL, 'onedl-mmdetection>=3.5']
SEG = [*ONEDL, 'onedl-mmsegmentation>=1.4']

# The last releases under the original names, which are written for numpy 1. What builds mmcv
# needs setuptools<82 (see constraints-legacy.txt).
OPENMMLAB = ['mmengine>=0.10.7', 'mmcv>=2.0.1,<2.2', 'numpy<2', 'opencv-python<4.11']
OPENMMLAB_CLS = [*OPENMMLAB, 'mmpretrain>=1.2']
OPENMMLAB_DET = [*OPENMMLAB, 'mmdet>=3.3']
OPENMMLAB_SEG = [*OPENMMLAB, 'mmsegmentation>=1.2.2', 'ftfy', 'regex']

# Of the demo: scikit-learn's handwritten digits need no download.
DEMO = ['matplotlib', 'pandas', 'scikit-learn']

# Of `dskd onnx`.
ONNX = ['onnx', 'onnxruntime']

# Of `make docs`.
DOCS = ['furo', 'latex2mathml', 'myst-parser', 'sphinx']


def union(*groups: list[str]) -> list[str]:
    return list(dict.fromkeys(requirement for group in groups for requirement in group))


EXTRAS = {
    'cls': CLS,
    'det': DET,
    'seg': SEG,
    'all': union(CLS, DET, SEG),
    'openmmlab-cls': OPENMMLAB_CLS,
    'openmmlab-det': OPENMMLAB_DET,
    'openmmlab-seg': OPENMMLAB_SEG,
    'openmmlab-all': union(OPENMMLAB_CLS, OPENMMLAB_DET, OPENMMLAB_SEG),
    'demo': DEMO,
    'docs': DOCS,
    'onnx': ONNX,
    'dev': [
        *DEMO,
        *ONNX,
        'diffusers',  # the reference that the tests compare our DDIM schedule with
        'hypothesis',
        'mypy',
        'pytest',
        'pytest-timeout',
        'pytest-xdist',
        'ruff',
        'scipy',
        'timm',  # networks of another library as teachers and students
    ],
}


def read_version() -> str:
    """Reads the version as text: importing the package would need torch."""
    text = (ROOT / 'dskd_mm' / 'version.py').read_text(encoding='utf-8')
    match = re.search(r"^__version__ = '([^']+)'", text, re.MULTILINE)
    if match is None:
        raise RuntimeError(f"dskd_mm/version.py has no line __version__ = '...', but:\n{text}")
    return match[1]


def read_readme() -> str:
    readme = ROOT / 'README.md'
    return readme.read_text(encoding='utf-8') if readme.exists() else ''


class BuildPyWithMim(build_py):
    """Puts configs, tools and the model index where MIM looks for them: `dskd_mm/.mim`.

    An editable install gets links, so that an edited config is the one that runs. A wheel gets
    copies, made in the build folder: the source tree stays as it is.
    """

    def run(self) -> None:
        super().run()
        base = ROOT if self.editable_mode else Path(self.build_lib)
        mim = base / 'dskd_mm' / '.mim'
        shutil.rmtree(mim, ignore_errors=True)
        mim.mkdir(parents=True)
        for name in MIM_FILES:
            source = ROOT / name
            if not source.exists():
                continue
            if self.editable_mode:
                (mim / name).symlink_to(os.path.relpath(source, mim))
            elif source.is_dir():
                shutil.copytree(source, mim / name, ignore=shutil.ignore_patterns('__pycache__'))
            else:
                shutil.copy2(source, mim / name)


setup(
    name='dskd_mm',
    version=read_version(),
    description='Diffusion self-knowledge distillation (DSKD) and its peers for OpenMMLab models',
    long_description=read_readme(),
    long_description_content_type='text/markdown',
    author='dskd_mm authors',
    license='Apache-2.0',
    project_urls={'Paper': 'https://arxiv.org/abs/2602.02107'},
    keywords=['computer vision', 'knowledge distillation', 'diffusion', 'OpenMMLab'],
    classifiers=[
        'Development Status :: 4 - Beta',
        'Intended Audience :: Science/Research',
        'Programming Language :: Python :: 3',
        'Programming Language :: Python :: 3.10',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
        'Typing :: Typed',
    ],
    packages=find_packages(include=['dskd_mm', 'dskd_mm.*']),
    python_requires='>=3.10',
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS,
    cmdclass={'build_py': BuildPyWithMim},
    package_data={'dskd_mm': ['py.typed']},
    entry_points={'console_scripts': ['dskd = dskd_mm.cli.main:main']},
    zip_safe=False,
)
