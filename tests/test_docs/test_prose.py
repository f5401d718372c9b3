"""Pages are easy to read in a terminal and in a review, and hold on to one vocabulary."""

import re

import pytest
from doc_pages import PAGES, ROOT, name_of, prose

MAX_LENGTH = 100
CHECKED = [*PAGES, ROOT / 'CONTRIBUTING.md', ROOT / 'SECURITY.md']
GENERATED = re.compile(r'<!-- (?!end)\w+\b[^>]*-->.*?<!-- end -->', re.DOTALL)
LINK_TARGET = re.compile(r'\]\([^)]*\)')
OLD_WORDS = re.compile(
    r'\b(port|observation|observed|readable|(?:classifier|head)?judge|opinions?|at stake|doomed)\b', re.IGNORECASE
)


def lines_of_prose(page):
    """Lines outside of code, tables, formulas, quoted messages and what a tool writes; links without their targets."""
    text = GENERATED.sub('', prose(page))
    lines = [LINK_TARGET.sub(']', line) for line in text.splitlines()]
    return [line for line in lines if not line.lstrip().startswith(('|', '$$', '>'))]


@pytest.mark.parametrize('page', CHECKED, ids=name_of)
def test_lines_are_short(page):
    assert not [line for line in lines_of_prose(page) if len(line) > MAX_LENGTH]


@pytest.mark.parametrize('page', [page for page in PAGES if page.name != 'CHANGELOG.md'], ids=name_of)
def test_old_words_are_gone(page):
    """The changelog alone tells what they were."""
    words = OLD_WORDS.findall(re.sub(r'\bPORT=', '', '\n'.join(lines_of_prose(page))))
    assert not words


def test_the_length_of_a_line_is_noticed(tmp_path):
    page = tmp_path / 'page.md'
    page.write_text('| ' + 'x' * 200 + ' |\n```\n' + 'x' * 200 + '\n```\n' + 'word ' * 25 + '\n[a](' + 'x' * 200 + ')\n')
    assert [len(line) > MAX_LENGTH for line in lines_of_prose(page) if line] == [True, False]
