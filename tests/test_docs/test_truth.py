"""What the docs name exists: linked files and headings, classes, and the options of the notation table."""

import inspect
import pkgutil
import re

import pytest
from doc_pages import PAGES, ROOT, name_of, prose

from dskd_mm import diffusion, distillers, features, guidance, hooks, losses, resume, sites, structures
from dskd_mm.arguments import arguments_of
from dskd_mm.distillers import base, dskd, options
from dskd_mm.teacher import FrozenTeacher

MODULES = (diffusion, distillers, features, guidance, hooks, losses, resume, sites, structures, base, dskd, options)
KNOWN = {name: getattr(module, name) for module in MODULES for name in dir(module)} | dict(FrozenTeacher=FrozenTeacher)


def anchors(path):
    """The addresses of a page's headings, as GitHub makes them."""
    titles = re.findall(r'^#+ (.+)$', prose(path), re.MULTILINE)
    return {re.sub(r'[^\w\- ]', '', title.lower()).replace(' ', '-') for title in titles}


@pytest.mark.parametrize('page', PAGES, ids=name_of)
def test_links_lead_somewhere(page):
    broken = []
    for target in re.findall(r'\]\(([^)\s]+)\)', prose(page)):
        if target.startswith(('http://', 'https://')):
            continue
        name, _, heading = target.partition('#')
        path = (page.parent / name).resolve() if name else page
        if not path.exists() or (heading and heading not in anchors(path)):
            broken.append(target)
    assert not broken


@pytest.mark.parametrize('name', ['architecture', 'glossary'])
def test_names_exist(name):
    """Every `Class` and `Class.member` in code font."""
    found = re.findall(r'`([A-Z]\w*[a-z]\w*)(?:\.(\w+))?`', prose(ROOT / f'docs/en/{name}.md'))
    assert len(found) > 15
    for name, member in found:
        assert name in KNOWN, name
        annotated = {key for cls in KNOWN[name].__mro__ for key in getattr(cls, '__annotations__', {})}
        if member and not hasattr(KNOWN[name], member) and member not in annotated:
            assert f'self.{member} = ' in inspect.getsource(KNOWN[name]), f'{name}.{member}'


def test_every_option_of_the_notation_is_one_of_dskd():
    table = prose(ROOT / 'docs/en/glossary.md').partition('## Symbols')[2]
    rows = [line.split('|') for line in table.splitlines() if line.startswith('| $')]
    named = [option for row in rows for option in re.findall(r'`(\w+)', row[3])]
    assert len(rows) > 15 and len(named) > 10
    assert not set(named) - set(arguments_of(distillers.DSKDDistiller))


def test_every_file_of_distillers_and_rooms_is_named():
    """The table of rooms names every folder and file of the package."""
    text = prose(ROOT / 'docs/en/architecture.md')
    rooms = [path for path in (ROOT / 'dskd_mm').iterdir() if not path.name.startswith(('_', '.', 'py.', 'version'))]
    missing = [path.name for path in rooms if f'`{path.name}{"/" if path.is_dir() else ""}`' not in text]
    assert not missing


def test_new_names_of_the_changelog_exist():
    """And the old ones do not."""
    table = prose(ROOT / 'CHANGELOG.md').partition('### Renamed')[2]
    rows = [line.split('|')[1:3] for line in table.splitlines() if line.startswith('| `')]
    assert len(rows) > 15
    for row in rows:
        for is_new, cell in enumerate(row):
            for name in re.findall(r'`([a-z_]+(?:\.\w+)+)`', cell):
                assert exists(f'dskd_mm.{name}') == bool(is_new), name


def exists(name):
    """Whether a dotted name is a module of the package or something in one."""
    try:
        pkgutil.resolve_name(name)
    except (ImportError, AttributeError):
        return False
    return True
