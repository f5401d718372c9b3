"""Print a whole config, with a method and options put over it: what is printed trains by itself, in a host's tools, too."""

import argparse

from mmengine.config import DictAction

from dskd_mm.utils.command_line import add_config_arguments, read_config


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_config_arguments(parser)
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='override settings of the config: key=value pairs')
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    cfg = read_config(args)
    cfg.merge_from_dict(args.cfg_options or {})
    print(cfg.pretty_text)


if __name__ == '__main__':
    main()
