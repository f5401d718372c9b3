"""The code of docs/en/extend.md as it is printed: a loss, a method, a task and a backbone, each through training steps."""

import ast
import importlib
import inspect
import re
import sys
from pathlib import Path

import pytest
import torch
from mmengine.registry import DefaultScope

from dskd_mm.distillers import ConfigurableDistiller, DSKDDistiller
from dskd_mm.registry import MODELS
from dskd_mm.testing import assert_nothing_is_unused, classifier_config, random_batch, random_teacher, train
from dskd_mm.utils.methods import apply_method

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / 'docs/en/extend.md').read_text(encoding='utf-8')
FILES = dict(re.findall(r'```python\n# (\w+\.py)\n(.*?)```', PAGE, re.DOTALL))
MAX_LINES = {'my_loss.py': 12, 'my_method.py': 25, 'heatmap_site.py': 80, 'my_backbone.py': 25}


@pytest.fixture
def page(tmp_path, monkeypatch):
    """A folder on the path with the files of the page. What they register and import leaves with it."""
    names = {name.removesuffix('.py') for name in FILES}
    for name, code in FILES.items():
        (tmp_path / name).write_text(code, encoding='utf-8')
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for registry in (MODELS, MODELS.parent):
        for key in [key for key, cls in registry.module_dict.items() if cls.__module__ in names]:
            del registry.module_dict[key]
    for name in names & set(sys.modules):
        del sys.modules[name]


def run_tests_of(name, page):
    """Run the tests that a file of the page holds."""
    module = importlib.import_module(name)
    tests = [test for key, test in inspect.getmembers(module, inspect.isfunction) if key.startswith('test_')]
    assert tests
    for test in tests:
        test(page)


def lines_of(name):
    """The lines of a file of the page, blank ones aside."""
    return len([line for line in FILES[name].splitlines() if line.strip()])


@pytest.mark.parametrize(('name', 'limit'), MAX_LINES.items())
def test_files_are_short(name, limit):
    assert lines_of(name) <= limit


def test_the_page_counts_its_lines():
    table = PAGE.partition('| --- |')[2].partition('\n\n')[0]
    assert [int(count) for count in re.findall(r'\| (\d+) \|$', table, re.MULTILINE)] == [lines_of(name) for name in MAX_LINES]


def test_files_parse():
    for name, code in FILES.items():
        ast.parse(code, name)
    assert {*MAX_LINES, 'cosine.py', 'test_my_method.py', 'test_heatmap_site.py'} <= set(FILES)


def test_loss(page):
    pytest.importorskip('mmpretrain')
    importlib.import_module('my_loss')
    torch.manual_seed(0)
    losses = dict(smooth=dict(type='dskd_mm.SmoothL1Loss', loss_weight=2.0))
    distiller = ConfigurableDistiller(classifier_config(), random_teacher(str(page)), distill_losses=losses, warmup=0)
    images, samples = random_batch()
    batch = dict(inputs=images, data_samples=samples)
    assert_nothing_is_unused(distiller, batch)
    first, *_, last = train(distiller, batch, steps=20, lr=0.01)
    assert last['loss_smooth'] < first['loss_smooth']


def test_method(page):
    pytest.importorskip('mmpretrain')
    run_tests_of('test_my_method', page)


def test_method_is_an_overlay(page):
    """``--method cosine.py`` puts it over a pair, and the options take a task's row."""
    from mmengine.config import Config

    cfg = Config.fromfile(ROOT / 'configs/dskd/resnet8-w8_r14-w16_fashion-mnist.py')
    assert apply_method(cfg, str(page / 'cosine.py')).model.type == 'dskd_mm.CosineDistiller'
    options = importlib.import_module('my_method').CosineOptions
    assert options.task_defaults['segmentation']['weight'] == 4.0 and options.weight == 1.0


def test_site(page):
    run_tests_of('test_heatmap_site', page)


def test_backbone(page):
    """With the config that is printed below it."""
    pytest.importorskip('mmpretrain')
    importlib.import_module('my_backbone')
    torch.manual_seed(0)
    code = re.search(r'```python\n(custom_imports[^`]*TinyNet.*?)```', PAGE, re.DOTALL)[1]
    printed = {}
    exec(code, printed)
    with DefaultScope.overwrite_default_scope('mmpretrain'):
        distiller = DSKDDistiller(printed['model']['student'], random_teacher(str(page)))
    images, samples = random_batch()
    batch = dict(inputs=images, data_samples=samples)
    assert distiller.student_spec.channels == 32
    assert_nothing_is_unused(distiller, batch)
    first, *_, last = train(distiller, batch, steps=20, lr=0.01)
    assert last['loss'] < first['loss']
