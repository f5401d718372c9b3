"""Export the plain student of a distiller's checkpoint, for use in the host library without dskd_mm."""

import argparse
import os.path as osp
from collections.abc import Sequence

from dskd_mm.cli.common import in_one_line
from dskd_mm.utils.checkpoint import export_student
from dskd_mm.utils.config import load_config, student_config


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog, description=__doc__)
    parser.add_argument('source', help='checkpoint of a distiller')
    parser.add_argument('target', help='file to write, such as student.pth')
    parser.add_argument(
        '--config', help="the distiller's config: its plain student's is put into the checkpoint and beside it, as TARGET.py"
    )
    args = parser.parse_args(argv)
    path = args.target.removesuffix('.pth') + '.py'
    with in_one_line(prog or 'export'):
        for written, read in ((args.target, args.source), (path, args.config)):
            if read and osp.realpath(written) == osp.realpath(read):
                raise ValueError(f'{written} would be written over what is exported, {read}: name another TARGET.')
        config = student_config(load_config(args.config)) if args.config else None
        student = export_student(args.source, args.target, config.pretty_text if config else None)
    print(f'{len(student["state_dict"])} tensors of the student in {args.source} are written to {args.target}.')
    if config:
        config.dump(path)
        print(f'Its config is written to {path}.')
