"""Files and functions stay small, and say what they do."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted(path for folder in ('dskd_mm', 'benchmarks', 'examples', 'tools') for path in (ROOT / folder).rglob('*.py'))
FILES = [path for path in FILES if not {'configs', '.mim'} & set(path.parts)]
MAX_FILE, MAX_FUNCTION, MAX_INIT = 400, 60, 50
"""Lines, those of signatures and comments included, those of a function's docstring not."""
QUESTIONS = {'How', 'What', 'When', 'Where', 'Whether', 'Which', 'Why'}
NOUNS = {'A', 'All', 'An', 'Class', 'Each', 'Every', 'Gradient', 'Half', 'Mean', 'No', 'Number', 'One', 'The', 'Two', 'Under'}


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


def test_docstrings_of_functions_begin_with_a_verb():
    """As in "Return ..." or "Refuse ..."; those of properties may be nouns, but no questions."""
    wrong = []
    for path in FILES:
        name = path.relative_to(ROOT).as_posix()
        for node, _ in functions(path):
            words = (ast.get_docstring(node) or '').split()
            is_property = any('property' in ast.unparse(decorator) for decorator in node.decorator_list)
            if not words or not name.startswith('dskd_mm/'):
                continue
            first = words[0].rstrip(',.:')
            is_verb = first.isalpha() and first.istitle() and not first.endswith('s') and first not in NOUNS
            if first in QUESTIONS or not (is_verb or is_property):
                wrong.append(f'{name}:{node.lineno} {node.name}: {" ".join(words[:5])}')
    assert not wrong, '\n'.join(wrong)
