"""What the docs print for a model of one's own, run on a toy; and what is only parsed, with the reason."""

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
from doc_pages import PAGES, ROOT, name_of
from mmengine.config import Config
from page_runs import run_command, run_page
from test_code_blocks import blocks, commands

from dskd_mm.testing import random_teacher
from support import plain_run_config

RUN = {
    'docs/en/get_started.md': 'here',
    'docs/en/tutorials/': 'test_tutorials.py',
    'README.md': 'here',
    'docs/en/deploy.md': 'here',
    'docs/en/see.md': 'tests/test_visualization',
    'examples/': 'tests/test_examples',
    'docs/en/pytorch.md': 'tests/test_pytorch',
    'docs/en/host_tools.md': 'tests/test_tools/test_host_tools.py',
}
"""Pages whose commands are run, and where."""

ONLY_PARSED = {
    r'make ': 'installs, or runs this very suite; CI runs them',
    r'python benchmarks/': 'hours of training; tests/test_benchmarks runs them on toys',
    r'(python tools/[\w/]+\.py|dskd \w+) configs/': 'data and hours; tests/test_configs takes a step of every config',
    r'tools/(dist|slurm)_': 'several devices; tests/test_robustness runs the scripts in two processes on the CPU',
    r'python -m dskd_mm\.mmcv_ops': 'changes the environment; tests/test_mmcv_ops runs them on a copy',
    r'python MMDET/': "the host's own script; tests/test_tools and tests/test_hooks train by mmengine's Runner as it does",
    r'.*\b(CONFIG|CHECKPOINT|WORK_DIR|my_config\.py)\b': 'stands for others; tests/test_tools runs each command',
    r'(dskd|python -m dskd_mm)( \w+)?$|python [\w/]+\.py$': 'names a command within a sentence',
}
"""Commands that no test runs as they are printed, and what is run in their place."""

OWN_CONFIGS = [
    pytest.param(code, id=name_of(page))
    for page in PAGES
    for code in blocks(page, 'python')
    if code.startswith("_base_ = 'my_existing_config.py'")
]


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A folder that holds what a reader has: a config that trains, and a teacher."""
    pytest.importorskip('mmpretrain')
    monkeypatch.chdir(tmp_path)
    cfg = plain_run_config('work_dirs/plain')
    cfg.pop('work_dir')
    for name in ('my_config.py', 'my_existing_config.py'):
        cfg.dump(name)
    teacher = random_teacher(str(tmp_path))
    Config(teacher['config']).dump('teacher_config.py')


def test_quick_start(mine):
    names = run_page(ROOT / 'docs/en/get_started.md')
    assert names['model'].__class__.__name__ == 'ImageClassifier' and Path('work_dirs/my_dskd/student_last.pth').is_file()


def test_deploy(mine):
    """After the quick start; the inferencers of mmdet and mmseg are run by the tutorials."""
    pytest.importorskip('onnxruntime', reason='ONNX needs the extra `onnx`')
    cv2.imwrite('image.png', np.zeros((16, 16, 3), np.uint8))
    run_page(ROOT / 'docs/en/get_started.md')
    shorter = [('epoch_10', 'epoch_2'), ('--size 640', '--size 32'), ("pip install 'dskd_mm[onnx]'\n", '')]
    names = run_page(ROOT / 'docs/en/deploy.md', shorter, skip=('mmdet', 'mmseg'))
    assert 'classifier' in names and 'detector' not in names
    assert Path('student.py').is_file() and Path('student.onnx').is_file()
    assert {path.suffix for path in Path('published').iterdir()} == {'.pth', '.py', '.yml'}


@pytest.mark.parametrize('code', OWN_CONFIGS)
def test_three_lines_of_a_config(code, mine):
    """As they are printed, with the commands of the README."""
    Path('my_dskd_config.py').write_text(code, encoding='utf-8')
    printed = [line for block in blocks(ROOT / 'README.md', 'shell') for line in block.splitlines() if 'my_dskd_config' in line]
    assert len(printed) == 2
    for line in printed:
        run_command(line)


def test_pages_have_such_configs():
    assert len(OWN_CONFIGS) >= 3


def test_every_command_is_run_or_says_why_not():
    unknown = []
    for words, page in ((param.values[0], param.id.partition(': ')[0]) for param in commands()):
        command = ' '.join(words)
        run = any(page.startswith(name) for name in RUN)
        if not run and not any(re.match(pattern, command) for pattern in ONLY_PARSED):
            unknown.append(f'{page}: {command}')
    assert not unknown, 'run it by a test, or say in ONLY_PARSED why not'
