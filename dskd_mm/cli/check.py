"""Check a config before any epoch is spent: environment, models, schedules, data, checkpoints and a step on the CPU.

Exits with 1 if there is a fault.
"""

import argparse
import sys
from collections.abc import Sequence

import rich
from mmengine.config import DictAction
from mmengine.logging import MMLogger

from dskd_mm.cli.common import add_config_arguments, read_config
from dskd_mm.preflight import PARTS, Finding, check_config, explain, report_table


def parse_args(argv: Sequence[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """Parse the command line; that of the process by default."""
    parser = argparse.ArgumentParser(prog, description=__doc__)
    add_config_arguments(parser)
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='override settings of the config: key=value pairs')
    parser.add_argument('--skip', nargs='+', choices=PARTS, default=[], help='parts to leave out: data where they are not')
    parser.add_argument('--quick', action='store_true', help='read no data set and download nothing')
    return parser.parse_args(argv)


def check(args: argparse.Namespace) -> list[Finding]:
    """Return what is found of the config that the command line names."""
    try:
        cfg = read_config(args)
        cfg.merge_from_dict(args.cfg_options or {})
    except RecursionError:
        return [Finding('config', args.config, 'Expected a config, but it inherits itself (_base_).', level='fault')]
    except Exception as error:
        return [Finding('config', args.config, f'Expected a config, but it cannot be read: {explain(error)}', level='fault')]
    return check_config(cfg, [part for part in PARTS if part not in args.skip], thorough=not args.quick).findings


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run the command."""
    args = parse_args(argv, prog)
    MMLogger.get_instance('mmengine', log_level='WARNING')  # the report tells what matters
    sys.exit(1 if print_findings(check(args), args.config) else 0)


def print_findings(findings: Sequence[Finding], title: str) -> int:
    """Print a table of what was found, and return the number of faults."""
    rich.print(report_table(findings, title))
    faults, warnings = (sum(finding.level == level for finding in findings) for level in ('fault', 'warning'))
    print(f'{len(findings)} findings, {faults} faults{f", {warnings} warnings" if warnings else ""}.')
    return faults
