"""List what of a model can be tapped: modules with the shapes they give out, and the site that distils it by default."""

import argparse
import re
from collections.abc import Sequence

import torch
from mmengine.config import Config
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import DefaultScope
from torch import nn

from dskd_mm.cli.common import in_one_line
from dskd_mm.features import find_shapes
from dskd_mm.preflight.models import describe, skeleton
from dskd_mm.sites import build_site
from dskd_mm.structures import TapSpec
from dskd_mm.utils.config import load_config, model_config, student_config

IMAGE_SIZE = 256
"""Divisible by the strides of usual pyramids, so that each shows as it is."""
DEPTH = 3
"""Without --grep: how many names a path has at most, so that blocks are listed and not all that is in them."""


def parse_args(argv: Sequence[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """Parse the command line; that of the process by default."""
    parser = argparse.ArgumentParser(prog, description=__doc__)
    parser.add_argument('config', help="path of a config, or package::path; of a distiller's the student is taken")
    parser.add_argument('--grep', metavar='PATTERN', help='list all modules whose path has this regular expression in it')
    parser.add_argument('--size', type=int, default=IMAGE_SIZE, help=f'height and width of the image; default: {IMAGE_SIZE}')
    args = parser.parse_args(argv)
    try:
        re.compile(args.grep or '')
    except re.error as error:
        parser.error(f'--grep expects a regular expression, but got {args.grep!r}: {error}.')
    if args.size < 1:
        parser.error(f'--size expects pixels, at least 1, but got {args.size}.')
    return args


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run the command."""
    args = parse_args(argv, prog)
    with in_one_line(prog or 'taps'):
        cfg = student_config(load_config(args.config))
    with DefaultScope.overwrite_default_scope(cfg.get('default_scope') or 'mmengine'):
        model = build(cfg)
        spec, site = default_site(model)
        shapes, error = find_shapes(model, args.size)
    print(f'{type(model).__name__} of {args.config}, an image of {args.size}x{args.size}')
    print(f'site: {site}\n')
    print('\n'.join(table(model, shapes, spec, args.grep, args.size)))
    if error is not None:
        words = f'{type(error).__name__}: {error}'.split('\n')[0]
        print(f'\nThe pass without annotations and values ended early, so later modules are missing ({words[:160]}).')
        print('If the model is made for images of one size, give it: --size 224.')


def build(cfg: Config) -> nn.Module:
    """Return the plain model of a config, without memory for its weights."""
    return skeleton(lambda: MMENGINE_MODELS.build(model_config(cfg)))


def default_site(model: nn.Module) -> tuple[TapSpec | None, str]:
    """Return where a model is tapped by default, and that in words; None and the reason if it is not."""
    try:
        site = build_site(None, model)
        spec = site.student_spec(model)
    except (TypeError, ValueError) as error:
        return None, f'none by default. {error}'
    return spec, f'{type(site).__name__}, {describe(spec)}'


def mark(name: str, spec: TapSpec | None) -> str:
    """Return what a module is to the default site, '' if nothing."""
    roles = []
    if spec is not None:
        roles += [f'feature ({spec.io})'] if name in spec.features else []
        roles += ['classifier'] if name in spec.classifiers else []
    return f'<- {", ".join(roles)}' if roles else ''


def table(
    model: nn.Module, shapes: dict[str, list[torch.Size]], spec: TapSpec | None, pattern: str | None, size: int
) -> list[str]:
    """Return the lines of the table of modules, with a mark on what is tapped by default."""
    rows = [('path', 'module', 'output', 'channels', 'stride', '')]
    for name, module in model.named_modules():
        shown = len(name.split('.')) <= DEPTH if pattern is None else re.search(pattern, name)
        found = list(dict.fromkeys(shapes.get(name, [])))
        if not shown or not found:
            continue
        rows.append(
            (
                name,
                type(module).__name__,
                ' '.join('x'.join(map(str, shape[1:])) or 'scalar' for shape in found),
                ' '.join(dict.fromkeys(str(shape[1]) for shape in found if len(shape) in (2, 4))),
                ' '.join(f'{size / shape[2]:g}' for shape in found if len(shape) == 4 and shape[2]),
                mark(name, spec),
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ['  '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
