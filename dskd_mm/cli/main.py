"""Distil models of mmpretrain, mmdet and mmsegmentation."""

import argparse
import importlib
import sys
from collections.abc import Sequence

from dskd_mm.version import __version__

COMMANDS = dict(
    distill='write a config that distils your model by a teacher, check it, and train it',
    taps="list a model's layers that can be tapped, with their shapes, and the default site",
    check='check a config before any epoch is spent',
    train='train from a config, distilled or plain',
    test='test a checkpoint of a distiller or of a plain student',
    export='write the plain student of a checkpoint',
    onnx='write the plain student as an ONNX graph, and compare it with PyTorch',
    publish='write the plain student with a hash, its config and what it was made by',
    see='draw features, opinions and predictions of a distilled model on images',
    report='write one HTML page of runs: results, health, losses, classes, pictures',
    config='print a whole config, with a method and options put over it',
)
"""The commands, each a module of this package, and what they do."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command that the command line names.

    Args:
        argv (Sequence[str], optional): The command and its arguments. Defaults to those of the process.
    """
    width = max(map(len, COMMANDS))
    listed = '\n'.join(f'  {name:{width}}  {about}' for name, about in COMMANDS.items())
    parser = argparse.ArgumentParser(
        'dskd',
        description=__doc__,
        epilog=f'commands:\n{listed}\n\nThe options of each: dskd COMMAND --help',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--version', action='version', version=f'dskd_mm {__version__}')
    parser.add_argument('command', choices=COMMANDS, metavar='COMMAND', help='one of those below')
    parser.add_argument('arguments', nargs=argparse.REMAINDER, metavar='...', help='its arguments')
    args = parser.parse_args(sys.argv[1:] if argv is None else argv)
    # Imported here: the list of commands needs none of the hosts.
    importlib.import_module(f'dskd_mm.cli.{args.command}').main(args.arguments, f'dskd {args.command}')
