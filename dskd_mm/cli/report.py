"""Write one HTML page of a run or of several: results, health, losses, classes, pictures, and how to do it again."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from dskd_mm.cli.common import in_one_line
from dskd_mm.report import build_report, read_runs


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog, description=__doc__)
    parser.add_argument('work_dirs', nargs='+', metavar='WORK_DIR', help='folders of runs: distilled, plain, the teacher')
    parser.add_argument('--out', type=Path, help='the page to write; default: report.html in the first folder')
    parser.add_argument(
        '--metric', help='what to compare runs by, as the log calls it; default: what save_best names, or a usual one'
    )
    args = parser.parse_args(argv)
    with in_one_line(prog or 'report'):
        page = build_report(read_runs(args.work_dirs), args.metric)
    out = args.out or Path(args.work_dirs[0]) / 'report.html'
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page, encoding='utf-8')
    print(f'{out} is written: {len(page) / 1e6:.1f} MB, to be opened in any browser.')
