"""Print a whole config, with a method and options put over it: what is printed trains by itself, in a host's tools, too."""

import argparse
from collections.abc import Sequence

from mmengine.config import DictAction

from dskd_mm.cli.common import add_config_arguments, in_one_line, read_config, show_student_in


def parse_args(argv: Sequence[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """Parse the command line; that of the process by default."""
    parser = argparse.ArgumentParser(prog, description=__doc__)
    add_config_arguments(parser)
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='override settings of the config: key=value pairs')
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run the command."""
    args = parse_args(argv, prog)
    with in_one_line(prog or 'config'):
        cfg = read_config(args)
    cfg.merge_from_dict(args.cfg_options or {})
    show_student_in(cfg)
    print(cfg.pretty_text)
