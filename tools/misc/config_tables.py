"""Write the tables of the pages that follow from configs and code.

A table stands between its marker and `<!-- end -->`: `<!-- methods -->` for what each file of configs/methods sets,
`<!-- pairs: DATA, METRIC -->` for the models of configs/dskd/metafile.yml that are trained on these data,
`<!-- small-pairs -->` for the pairs that it does not list, and `<!-- log: GROUP -->` for the keys of the log in
dskd_mm/report/log_keys.py.
"""

import argparse
import ast
import re
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from mmengine.config import Config

if __name__ == '__main__':  # from any folder, installed or not
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dskd_mm.report.log_keys import log_table

CONFIGS = Path(__file__).resolve().parents[2] / 'configs'
PAGES = (CONFIGS / 'methods/README.md', CONFIGS / 'dskd/README.md', CONFIGS.parent / 'docs/en/log.md')
ROWS = dict(
    model='everywhere',
    classification='classification',
    detection='detection',
    two_stage_detection='detection in two stages',
    segmentation='segmentation',
)
"""Keys of a method's file, in the order in which they are merged, by what tables call them."""


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--check', action='store_true', help='write nothing; exit with 1 if a table is out of date')
    return parser.parse_args()


def methods_text() -> str:
    """Return a section for each file of configs/methods: its docstring and its settings."""
    return '\n\n'.join(map(method_text, sorted((CONFIGS / 'methods').glob('*.py'))))


def method_text(path: Path) -> str:
    """Return the section of one method."""
    about = ast.get_docstring(ast.parse(path.read_text(encoding='utf-8'))) or ''
    paragraphs = [
        textwrap.fill(part, 100, break_long_words=False, break_on_hyphens=False) for part in re.split(r'\n\n+', about)
    ]
    cfg = Config.fromfile(path)
    rows = [(name, cfg[key]) for key, name in ROWS.items() if key in cfg]
    rows += [(f'`{pattern}`'.replace('|', r'\|'), row) for pattern, row in (cfg.get('pairs') or {}).items()]
    table = [f'| {name} | {"not for it" if row is None else ", ".join(settings(row))} |' for name, row in rows]
    return '\n\n'.join([f'### {path.stem}', *paragraphs, '\n'.join(['| where | sets |', '| :-- | :-- |', *table])])


def settings(config: dict, prefix: str = '') -> Iterator[str]:
    """Yield what a dict sets as `key = value`, nested keys joined by dots; both sides of a layer in one."""
    for key, value in config.items():
        if key == '_delete_':
            yield f'`{prefix.rstrip(".")}` anew'
        elif isinstance(value, dict) and prefix == 'layers.':
            sides = dict.fromkeys(tap(side) for side in value.values())
            yield f'`{prefix}{key} = {" / ".join(sides)}`'
        elif isinstance(value, dict) and value:
            yield from settings(value, f'{prefix}{key}.')
        else:
            yield f'`{prefix}{key} = {str(value).removeprefix("dskd_mm.")}`'


def tap(side: dict) -> str:
    """Return a module's path, with its element if one is named."""
    return side['path'] + (f'[{side["index"]}]' if 'index' in side else '')


def pairs_table(data: str, metric: str) -> str:
    """Return the table of the models of the metafile that are trained on a data set."""
    models = [model for model in listed_models() if model['Metadata']['Training Data'] == data]
    length = 'Epochs' if 'Epochs' in models[0]['Metadata'] else 'Iterations'
    lines = [f'| Student | Params (M) | {metric}, plain | Teacher | {metric} | {length} | Config |']
    lines.append('| :-- | --: | --: | :-- | --: | --: | :-- |')
    for model in models:
        about: dict[str, Any] = model['Metadata']
        published = about['Published']
        cells = [about['Student'], f'{about["Parameters"] / 1e6:.2f}', published.get('Student', '')]
        cells += [about['Teacher'], published.get('Teacher', ''), f'{about[length]:,}']
        lines.append(f'| {" | ".join(cells)} | [config](./{Path(model["Config"]).name}) |')
    return '\n'.join(lines)


def small_pairs_table() -> str:
    """Return the table of the pairs that are not in the metafile, which are sized for CPUs."""
    listed = {Path(model['Config']).name for model in listed_models()}
    lines = ['| Data | Student | Teacher | Epochs | Config |', '| :-- | :-- | :-- | --: | :-- |']
    for path in sorted(CONFIGS.glob('dskd/*.py'), key=lambda path: path.stem.split('_')[::-1]):
        if path.name in listed:
            continue
        cfg = Config.fromfile(path)
        models = (*Config._get_base_files(str(path)), cfg.model.teacher.config)
        names = [f'[{Path(model).stem}](../plain/{Path(model).name})' for model in models]
        cells = [path.stem.split('_')[-1], *names]
        lines.append(f'| {" | ".join(cells)} | {cfg.train_cfg.max_epochs} | [config](./{path.name}) |')
    return '\n'.join(lines)


def listed_models() -> list[dict]:
    """Return what the metafile says of each of its models."""
    return yaml.safe_load((CONFIGS / 'dskd/metafile.yml').read_text(encoding='utf-8'))['Models']


def written(text: str) -> str:
    """Return a page with its tables as they should be."""

    def table(match: re.Match) -> str:
        content = TABLES[match[2]](*filter(None, (match[3] or '').split(', ')))
        return f'{match[1]}\n\n{content}\n\n<!-- end -->'

    return re.sub(rf'(<!-- ({"|".join(TABLES)})(?:: ([^>]*))? -->)\n.*?<!-- end -->', table, text, flags=re.DOTALL)


TABLES: dict[str, Any] = {
    'methods': methods_text,
    'pairs': pairs_table,
    'small-pairs': small_pairs_table,
    'log': log_table,
}
"""What makes the text between markers, by the marker's first word."""


def main() -> None:
    args = parse_args()
    outdated = [page for page in PAGES if written(page.read_text(encoding='utf-8')) != page.read_text(encoding='utf-8')]
    for page in outdated:
        print(
            f'{page.relative_to(CONFIGS.parent)} is out of date' if args.check else f'{page.name} of {page.parent.name} written'
        )
        if not args.check:
            page.write_text(written(page.read_text(encoding='utf-8')), encoding='utf-8')
    sys.exit(1 if outdated and args.check else 0)


if __name__ == '__main__':
    main()
