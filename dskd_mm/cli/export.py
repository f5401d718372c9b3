"""Export the plain student of a distiller's checkpoint, for use in the host library without dskd_mm."""

import argparse
from collections.abc import Sequence

from mmengine.config import Config
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import DefaultScope
from torch import Tensor

from dskd_mm.distillers.fuse import fuse_classifier
from dskd_mm.utils.checkpoint import export_student, load_checkpoint_file
from dskd_mm.utils.config import model_config, student_config


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(prog, description=__doc__)
    parser.add_argument('source', help='checkpoint of a distiller')
    parser.add_argument('target', help='file to write, such as student.pth')
    parser.add_argument(
        '--config', help="the distiller's config: its plain student's is put into the checkpoint and beside it, as TARGET.py"
    )
    parser.add_argument(
        '--fuse',
        action='store_true',
        help="fold the teacher's classifier on the student's feature into the student's own: the mean of both, in a head of "
        'the same shape (DSKD, with --config)',
    )
    args = parser.parse_args(argv)
    if args.fuse and not args.config:
        parser.error("--fuse needs the distiller's config, --config, which tells where the teacher is")
    cfg = Config.fromfile(args.config) if args.config else None
    config = student_config(cfg) if cfg else None
    text = config.pretty_text if config else None
    student = export_student(args.source, args.target, text, fused(cfg, args.source) if cfg and args.fuse else None)
    print(f'{len(student["state_dict"])} tensors of the student in {args.source} are written to {args.target}.')
    if config:
        path = args.target.removesuffix('.pth') + '.py'
        config.dump(path)
        print(f'Its config is written to {path}.')


def fused(cfg: Config, source: str) -> dict[str, Tensor]:
    """Return the weights of a distiller's student with the teacher's classifier in its own."""
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope') or 'mmengine'):
        distiller = MMENGINE_MODELS.build(model_config(cfg))
        state = load_checkpoint_file(source)
        distiller.load_state_dict(state.get('state_dict', state), strict=True)
        fuse_classifier(distiller)
    return distiller.student.state_dict()
