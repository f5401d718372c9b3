"""Tables of what benchmarks/model_zoo.py recorded."""

import re
from pathlib import Path
from typing import Any

from benchmarks.cost_tables import Block
from benchmarks.model_zoo import RESULTS, is_exact
from benchmarks.records import markdown, records


def verdict(row: dict[str, Any]) -> str:
    """Return how a model is distilled, or why it is not."""
    if not row['site'] and row.get('plain'):
        return f'not tried: it does not train by itself here ({first_sentence(row["plain"])})'
    if not row['site']:
        return f'not supported: {first_sentence(row["error"])}'
    place = '' if row['site'] != 'NeckSite' else ' at the neck'
    if not is_exact(row):
        return f'trains{place}; differs by {max(row["differences"].values()):.1g}'
    return f'exact{place}' + (f'; its head: {first_sentence(row["refused"])}' if row['refused'] else '')


def first_sentence(error: str) -> str:
    """Return the first sentence of an error, without its type, fit for a table."""
    text = re.sub(r'^\w+: ', '', error).replace('|', '/')
    return re.split(r'(?<=[a-z\')\]])[.;] ', text, maxsplit=1)[0].rstrip('.')[:200] or error.split(':')[0]


def models(host: str, page: Path) -> Block:
    """Return a row for each recorded model of a host."""
    rows = [row for row in records(RESULTS) if row['host'] == host]
    cells = []
    for row in rows:
        parts = ', '.join(f'`{row[name]}`' for name in ('backbone', 'neck', 'head') if row[name])
        cells.append((f'`{row["config"].removesuffix(".py")}`', parts, verdict(row)))
    exact = sum(map(is_exact, rows))
    return f'{markdown(("config", "parts", "student = teacher"), cells)}\n\n{exact} of {len(rows)} are exact.', {}
