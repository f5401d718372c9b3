"""The documentation's site: `make docs` builds it. Pages are the repository's own, under their own paths."""

import shutil
import sys
from pathlib import Path

from docutils.nodes import SkipNode
from latex2mathml.converter import convert

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the API reference is of this checkout

from dskd_mm.version import __version__ as release  # noqa: E402

NAVIGATION = {
    'Start': [
        'docs/en/install',
        'docs/en/get_started',
        'Tutorial: classification <docs/en/tutorials/classification>',
        'Tutorial: detection <docs/en/tutorials/detection>',
        'Tutorial: segmentation <docs/en/tutorials/segmentation>',
        'The demo <examples/digits/README>',
    ],
    'Understand': [
        'docs/en/concepts',
        'docs/en/glossary',
        'docs/en/method',
    ],
    'Use': [
        'docs/en/own_model',
        'docs/en/supported_models',
        'docs/en/pytorch',
        'docs/en/methods',
        'docs/en/teachers',
        'docs/en/train',
        'docs/en/deploy',
        'docs/en/log',
        'docs/en/see',
        'docs/en/host_tools',
        'docs/en/scale',
        'docs/en/faq',
    ],
    'Configs': [
        'How configs are made <configs/README>',
        'All pairs <configs/dskd/README>',
        'All methods <configs/methods/README>',
    ],
    'Results': [
        'docs/en/benchmark',
        'docs/en/benchmark_before',
        'docs/en/ablations',
        'docs/en/ablations_first',
        'docs/en/cost',
    ],
    'Extend': [
        'docs/en/extend',
        'docs/en/architecture',
        'docs/en/api',
        'docs/en/mmcv_ops',
        'CONTRIBUTING',
    ],
    'About': [
        'CHANGELOG',
        'docs/en/security',
        'Report a weakness <SECURITY>',
    ],
}

project = 'dskd_mm'
author = 'dskd_mm authors'
root_doc = 'README'
include_patterns = ['*.md', 'docs/en/**', 'configs/**.md', 'examples/**.md']
exclude_patterns = ['.*', 'build', 'dist', 'work_dirs', 'dskd_mm', 'tests']
templates_path = [str(ROOT / 'docs/templates')]
extensions = ['myst_parser', 'sphinx.ext.autodoc', 'sphinx.ext.autosummary', 'sphinx.ext.napoleon', 'sphinx.ext.viewcode']

myst_enable_extensions = ['dollarmath']
myst_heading_anchors = 4  # the anchors that code-hosting pages make

autodoc_member_order = 'bysource'
autodoc_typehints = 'description'
default_role = 'code'

html_theme = 'furo'
html_title = f'dskd_mm {release}'
html_show_sphinx = False
html_math_renderer = 'mathml'


def add_navigation(app, docname, source):
    """Append the navigation to the front page, which is the README and knows nothing of Sphinx."""
    if docname == root_doc:
        for caption, pages in NAVIGATION.items():
            source[0] += '\n```{toctree}\n:hidden:\n:caption: ' + caption + '\n\n' + '\n'.join(pages) + '\n```\n'


def write_mathml(visitor, node):
    """Write a formula as MathML, which browsers show without a script from elsewhere."""
    block = node.tagname == 'math_block'
    formula = convert(node.astext(), display='block' if block else 'inline')
    visitor.body.append(f'<div class="math">{formula}</div>' if block else formula)
    raise SkipNode


def copy_front_page(app, exception):
    """Make the README's page the one that servers show for the folder."""
    if exception is None:
        shutil.copyfile(Path(app.outdir, 'README.html'), Path(app.outdir, 'index.html'))


def setup(app):
    app.add_html_math_renderer('mathml', (write_mathml, None), (write_mathml, None))
    app.connect('source-read', add_navigation)
    app.connect('build-finished', copy_front_page)
