"""Files and functions stay small."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(path for folder in ('dskd_mm', 'benchmarks', 'examples', 'tools') for path in (ROOT / folder).rglob('*.py'))
FILES = [path for path in FILES if not {'configs', '.mim'} & set(path.parts)]
MAX_FILE, MAX_FUNCTION, MAX_INIT = 400, 60, 50
"""Lines, those of signatures and comments included, those of a function's docstring not."""


def functions(path: Path) -> Iterator[tuple[ast.FunctionDef, int]]:
    """Each function of a file with its lines."""
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.FunctionDef):
            first = node.body[0]
            documented = ast.get_docstring(node) is not None
            length = (node.end_lineno or 0) - node.lineno + 1
            yield node, length - (first.end_lineno - first.lineno + 1 if documented else 0)


def test_the_files_are_found():
    assert len(FILES) > 120


@pytest.mark.parametrize('path', FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_and_functions_are_small(path):
    length = len(path.read_text(encoding='utf-8').splitlines())
    assert length <= MAX_FILE, f'{length} lines: split it'
    for node, lines in functions(path):
        limit = MAX_INIT if node.name == '__init__' else MAX_FUNCTION
        assert lines <= limit, f'{node.name} has {lines} lines of at most {limit}'
