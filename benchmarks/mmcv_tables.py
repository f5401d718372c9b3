"""Tables of what benchmarks/mmcv_zoo.py and benchmarks/mmcv_speed.py recorded."""

import re
from pathlib import Path

from benchmarks.cost_tables import Block
from benchmarks.records import markdown, records
from benchmarks.runner import ROOT

ZOO = ROOT / 'benchmarks' / 'results' / 'mmcv_zoo.jsonl'
SPEED = ROOT / 'benchmarks' / 'results' / 'mmcv_speed.jsonl'
LEFT_OUT = re.compile(r'no replacement of (\w+)')


def verdict(row: dict, kind: str) -> str:
    """Return 'works', the operator that is missing, or the error."""
    missing = LEFT_OUT.search(row[kind])
    return f'lacks `{missing[1]}`' if missing else row[kind].replace('|', '/')


def zoo(host: str, page: Path) -> Block:
    """Return a row for each model of a host: whether its steps work, and the operators that they called."""
    rows = [row for row in records(ZOO) if row['host'] == host]
    cells = []
    for row in rows:
        names = ', '.join(f'`{name}`' for name in row['operators'])
        cells.append((row['model'], row['config'], verdict(row, 'train'), verdict(row, 'test'), names))
    good = sum(row['train'] == row['test'] == 'works' for row in rows)
    table = markdown(('model', 'config', 'training step', 'test step', 'operators'), cells)
    return f'{table}\n\n{good} of {len(rows)} take both steps.', {}


def speed(what: str, page: Path) -> Block:
    """Return a row for each operator, or each step of a detector."""
    rows = [row for row in records(SPEED) if row['what'].endswith(' step') == (what == 'steps')]
    cells = [(r['what'], f'{r["compiled"] * 1e3:.1f}', f'{r["ours"] * 1e3:.1f}', f'{r["ratio"]:.2f}') for r in rows]
    table = markdown(('on the CPU', 'compiled, ms', 'dskd_mm.mmcv_ops, ms', 'ratio'), cells)
    return f'{table}\n\n```shell\n{rows[0]["command"]}\n```', {}
