"""The pages of the documentation."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    ROOT / 'README.md',
    ROOT / 'CHANGELOG.md',
    *sorted(ROOT.glob('docs/en/**/*.md')),
    *sorted(ROOT.glob('configs/**/README.md')),
    *sorted(ROOT.glob('examples/**/README.md')),
]


def name_of(page: Path) -> str:
    """A page's path from the root."""
    return str(page.relative_to(ROOT))


def prose(page: Path) -> str:
    """A page without its blocks of code."""
    return re.sub(r'^ *```.*?^ *```', '', page.read_text(encoding='utf-8'), flags=re.DOTALL | re.MULTILINE)
