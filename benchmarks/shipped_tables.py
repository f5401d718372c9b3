"""The table of what benchmarks/shipped.py recorded."""

import re
from pathlib import Path

from benchmarks.cost_tables import Block
from benchmarks.records import markdown, records
from benchmarks.runner import ROOT

RESULTS = ROOT / 'benchmarks' / 'results' / 'shipped.jsonl'
STEPS = dict(distill='distil', train='train', test='test', export='export', inferencer='inferencer')


def verdict(row: dict, step: str) -> str:
    """Return 'works', the error, or nothing where an earlier step failed."""
    found = row.get(step, '')
    return in_a_cell(found) if not found or 'Error' in found or 'SystemExit' in found else 'works'


def graph(row: dict) -> str:
    """Return by how much onnxruntime differs from PyTorch, or that the model is refused."""
    found = row.get('onnx', '')
    if 'expects more than images' in found:
        return 'refused'
    numbers = re.fullmatch(r'(\S+) of (\S+)', found)
    return f'{float(numbers[1]):.0e} ({float(numbers[2]):.2g})' if numbers else in_a_cell(found)


def in_a_cell(text: str) -> str:
    """Return a text that leaves the row of a table whole."""
    return ' '.join(text.replace('|', '\\|').split())


def shipped(host: str, page: Path) -> Block:
    """Return a row for each pair: whether its steps work, and the difference of the ONNX graph; host 'all' for all of them."""
    rows = [row for row in records(RESULTS) if host in ('all', row['host'])]
    cells = [
        (row['host'], Path(row['student']).stem, Path(row['teacher']).stem, *(verdict(row, step) for step in STEPS), graph(row))
        for row in rows
    ]
    return markdown(('host', 'student', 'teacher', *STEPS.values(), 'ONNX'), cells), {}
