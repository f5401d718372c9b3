"""What the docs print can be run: Python compiles, configs are read, commands have a program that takes their options."""

import argparse
import ast
import importlib
import re
import runpy
import shlex
import sys
import textwrap
from pathlib import Path

import pytest
from doc_pages import PAGES, ROOT, name_of, prose
from mmengine.config import Config, ConfigDict

from dskd_mm.arguments import check_arguments
from dskd_mm.cli.main import COMMANDS
from dskd_mm.registry import DATASETS, HOOKS, MODELS, OPTIM_WRAPPER_CONSTRUCTORS, OPTIM_WRAPPERS
from dskd_mm.utils.config import nodes

FENCE = re.compile(r'^( *)```(\w*)\n(.*?)^\1```', re.DOTALL | re.MULTILINE)
OTHERS = {'pip', 'pip-audit', 'python3', '.', 'grep', 'apt', 'git', 'uv'}
"""Programs of others, whose options are theirs."""
HOSTS = ('MMDET/', 'MMSEG/', 'MMPRETRAIN/')
OWN_TYPES = ('dskd_mm.Smooth', 'dskd_mm.Cosine', 'dskd_mm.Heatmap', 'dskd_mm.TinyNet')
"""What docs/en/extend.md defines: test_extend.py runs it."""


def blocks(page, *languages):
    """The blocks of code of a page in some languages."""
    found = FENCE.findall(page.read_text(encoding='utf-8'))
    return [textwrap.dedent(code) for _, language, code in found if language in languages]


def pythons():
    """Every block of Python but those of the tutorials, which test_tutorials.py runs."""
    pages = [page for page in PAGES if page.parent.name != 'tutorials']
    return [pytest.param(code, id=f'{name_of(page)}-{i}') for page in pages for i, code in enumerate(blocks(page, 'python'))]


def is_config(code):
    """Whether a block only sets what a config sets."""
    body = [node for node in ast.parse(code).body if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))]
    return bool(body) and all(isinstance(node, ast.Assign) for node in body)


@pytest.mark.parametrize('code', pythons())
def test_python_compiles_and_configs_are_read(code, tmp_path):
    compile(code, 'page', 'exec')
    if not is_config(code):
        return
    (tmp_path / 'my_existing_config.py').write_text("model = dict(type='ImageClassifier')\n")
    code = code.replace('{{ fileDirname }}/..', '..').replace("'../plain/", f"'{ROOT}/configs/plain/")
    (tmp_path / 'page.py').write_text(code, encoding='utf-8')
    cfg = Config.fromfile(tmp_path / 'page.py', import_custom_modules=False)
    for key in ('model', 'layers', 'distill_losses', 'optim_wrapper'):
        assert isinstance(cfg.get(key, ConfigDict()), dict), key
    for part in nodes(cfg.to_dict()):
        kind = part.get('type', '') if isinstance(part, dict) else ''
        if isinstance(kind, str) and kind.startswith('dskd_mm.') and not kind.startswith(OWN_TYPES):
            registries = (MODELS, HOOKS, DATASETS, OPTIM_WRAPPERS, OPTIM_WRAPPER_CONSTRUCTORS)
            (cls,) = filter(None, (registry.get(kind) for registry in registries))
            check_arguments(cls, {key: value for key, value in part.items() if key != '_delete_'})


def commands():
    """Every command that is printed, in blocks and within sentences, with the page that it is first on."""
    found = {}
    for page in PAGES:
        lines = [line for code in blocks(page, 'shell', 'bash') for line in code.replace('\\\n', ' ').splitlines()]
        lines += re.findall(r'`((?:python|dskd|make|tools/\w+\.sh) [^`]+)`', re.sub(r'\s*\n\s*', ' ', prose(page)))
        for line in lines:
            for command in re.sub(r'\s#.*|\s>.*', '', re.sub(r'[][]|\.\.\.', '', line)).split('&&'):
                words = shlex.split(command.strip())
                while words and re.match(r'\w+=', words[0]):
                    del words[0]
                if words and words[0] not in OTHERS:
                    found.setdefault(tuple(words), name_of(page))
    return [pytest.param(words, id=f'{page}: {" ".join(words)}'[:120]) for words, page in found.items()]


class ParsedError(Exception):
    """A command line was accepted."""


@pytest.fixture
def only_parse(monkeypatch):
    """Programs end once they have parsed their command line."""
    parse = argparse.ArgumentParser.parse_args

    def parse_args(self, args=None, namespace=None):
        parse(self, args, namespace)
        raise ParsedError

    monkeypatch.setattr(argparse.ArgumentParser, 'parse_args', parse_args)
    monkeypatch.setattr(sys, 'path', [str(ROOT), *sys.path])
    monkeypatch.chdir(ROOT)

    def run(program, arguments):
        monkeypatch.setattr(sys, 'argv', [str(program), *arguments])
        with pytest.raises(ParsedError):
            program(arguments) if callable(program) else runpy.run_path(str(program), run_name='__main__')

    return run


@pytest.mark.parametrize('words', commands())
def test_command_exists_and_takes_its_options(words, only_parse):
    program, *arguments = words
    for word in arguments:
        if re.match(r'(configs|tools|benchmarks|examples|docs)/', word):
            assert (ROOT / word).exists(), word
    if program == 'make':
        targets = re.findall(r'^([a-z-]+):', (ROOT / 'Makefile').read_text(), re.MULTILINE)
        assert {word for word in arguments if '=' not in word} <= set(targets)
        return
    if program == 'python' and arguments[0] == '-m':
        program, arguments = arguments[1], arguments[2:]
        if program != 'dskd_mm':
            spec = importlib.util.find_spec(program)
            is_package = spec.submodule_search_locations is not None
            only_parse(Path(spec.origin).with_name('__main__.py') if is_package else Path(spec.origin), arguments)
            return
        program = 'dskd'
    if program == 'dskd':
        assert not arguments or arguments[0] in COMMANDS
        if arguments[1:]:
            only_parse(importlib.import_module(f'dskd_mm.cli.{arguments[0]}').main, arguments[1:])
    elif program.endswith('.sh'):
        assert (ROOT / program).is_file()
        only_parse(*handed_on(program, arguments))
    else:
        assert program == 'python', words
        if arguments[1:] and not arguments[0].startswith(HOSTS):  # a sentence may name a program alone
            only_parse(ROOT / arguments[0], arguments[1:])


def handed_on(script, arguments):
    """The command that a launch script calls, and what it hands on: all but the number of GPUs, or Slurm's words."""
    kind = 'train' if 'train' in script else 'test'
    own = [0, 1] if 'slurm' in script else [1 if kind == 'train' else 2]
    own += [3] if 'slurm' in script and kind == 'train' else []  # the folder goes on as --work-dir
    return importlib.import_module(f'dskd_mm.cli.{kind}').main, [a for i, a in enumerate(arguments) if i not in own]


def test_commands_are_found():
    assert len(commands()) > 50 and len(pythons()) > 15


def test_a_wrong_option_is_noticed(only_parse):
    with pytest.raises(SystemExit):
        only_parse(ROOT / 'tools/train.py', ['CONFIG', '--no-such-option'])
