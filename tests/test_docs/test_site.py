"""The site that `make docs` builds: every page of the docs, every link, pictures and formulas, and the API reference."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from urllib.parse import unquote, urlparse

import pytest
from doc_pages import PAGES, ROOT

for name in ('sphinx', 'myst_parser', 'furo'):
    pytest.importorskip(name, reason="the docs' site needs the extra `docs`")


class Links(HTMLParser):
    """Collects where a page leads, and what can be led to on it."""

    def __init__(self, path):
        super().__init__()
        self.targets, self.ids = [], set()
        self.feed(path.read_text(encoding='utf-8'))

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        self.ids.add(attrs.get('id'))
        self.targets += [attrs[key] for key in ('href', 'src') if attrs.get(key)]


@pytest.fixture(scope='module')
def site(tmp_path_factory):
    """Build the site as `make docs` does."""
    folder = tmp_path_factory.mktemp('site')
    makefile = (ROOT / 'Makefile').read_text(encoding='utf-8')
    command = re.search(r'^docs:.*\n\t@\$\(VENV_PYTHON\) (.*)$', makefile, re.MULTILINE)[1]
    command = command.replace('build/', f'{folder}/').split()
    result = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, timeout=1500)
    assert result.returncode == 0, result.stderr[-5000:]
    return folder / 'docs'


def test_every_page_is_there(site):
    for page in PAGES:
        assert (site / page.relative_to(ROOT).with_suffix('.html')).is_file(), page
    assert (site / 'index.html').read_bytes() == (site / 'README.html').read_bytes()


def test_links_lead_somewhere(site):
    """Relative links of Markdown become links of the site, to the heading."""
    pages = {path.resolve(): Links(path) for path in site.rglob('*.html')}
    broken, inner = [], 0
    for path, page in pages.items():
        for target in page.targets:
            url = urlparse(target)
            if url.scheme:
                continue
            inner += 1
            other = (path.parent / unquote(url.path)).resolve() if url.path else path
            anchor = unquote(url.fragment)
            if not other.exists() or (anchor and other in pages and anchor not in pages[other].ids):
                broken.append((str(path.relative_to(site)), target))
    assert not broken
    assert inner > 1000


def test_nothing_is_loaded_from_elsewhere(site):
    """The site is read without a network, and tells no one who reads it."""
    for path in site.rglob('*.html'):
        loaded = re.findall(r'<(?:script|img|link)\b[^>]*?(?:src|href)="(https?:[^"]*)"', path.read_text(encoding='utf-8'))
        assert not loaded, path


def test_pictures_formulas_and_code(site):
    front = (site / 'index.html').read_text(encoding='utf-8')
    assert 'training_step.svg' in front and 'highlight-python' in front
    assert (site / 'docs/en/method.html').read_text(encoding='utf-8').count('<math') > 30
    for path in site.rglob('*.html'):
        text = path.read_text(encoding='utf-8')
        assert 'mermaid' not in text and 'merror' not in text, path


def test_reference_has_the_docstrings(site):
    """Every package of the reference shows what it exports."""
    from dskd_mm import diffusion, distillers, features, guidance, hooks, losses, sites, structures

    for module in (diffusion, distillers, features, guidance, hooks, losses, sites, structures):
        text = (site / f'docs/en/api/{module.__name__}.html').read_text(encoding='utf-8')
        missing = [name for name in module.__all__ if callable(getattr(module, name)) and f'.{name}"' not in text]
        assert not missing, module.__name__
    text = (site / 'docs/en/api/dskd_mm.teacher.html').read_text(encoding='utf-8')
    assert 'id="dskd_mm.teacher.FrozenTeacher"' in text and 'id="typing.Any"' not in text
