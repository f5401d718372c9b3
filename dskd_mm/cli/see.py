"""Draw what distillation does to images: features on their way, the teacher's opinion of them, predictions side by side.

Images from anywhere have no annotations. What the teacher predicts takes their place.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from mmengine.config import Config, DictAction
from mmengine.logging import MMLogger
from mmengine.registry import MODELS
from mmengine.visualization import Visualizer

from dskd_mm.cli.common import add_config_arguments, in_one_line, read_config
from dskd_mm.distillers import Distiller, DSKDDistiller
from dskd_mm.utils.checkpoint import load_checkpoint_file, load_plain_model
from dskd_mm.utils.config import is_distiller_config, load_config, model_config, num_classes, student_config, type_name
from dskd_mm.visualization import draw_prediction, follow_feature, grid, plot_maps, plot_opinions, plot_plane
from dskd_mm.visualization.images import (
    annotate,
    class_names,
    in_class_order,
    in_input_frame,
    load_image,
    palette_of,
    picture_of,
    predict,
    scope_of,
)
from dskd_mm.visualization.journey import load_whole_teacher


def parse_args(argv: Sequence[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """Parse the command line; that of the process by default."""
    parser = argparse.ArgumentParser(prog, description=__doc__)
    add_config_arguments(parser)
    parser.add_argument('checkpoint', help="checkpoint of the distiller's training")
    parser.add_argument('images', nargs='+', metavar='IMAGE', help='files of images')
    parser.add_argument(
        '--plain', nargs=2, metavar=('CONFIG', 'CHECKPOINT'), help='a plain student to compare predictions with'
    )
    parser.add_argument('--out', type=Path, help="folder for the pictures; default: 'see' beside the checkpoint")
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, help='override settings of the config: key=value pairs')
    return parser.parse_args(argv)


def build_distiller(cfg: Config, checkpoint: str) -> tuple[Distiller, dict[str, Any]]:
    """Build a distiller with the weights of a checkpoint, and return what that says of itself.

    Raises:
        ValueError: If the config is of no distiller, or the checkpoint of another one.
    """
    if not is_distiller_config(cfg):
        name = type_name(cfg.get('model') or {})
        raise ValueError(
            f"dskd see expects a distiller's config, but the model of {cfg.filename} is a {name}. A plain student is "
            'compared by --plain CONFIG CHECKPOINT.'
        )
    if type_name(cfg.model) == 'DSKDDistiller':
        cfg.model.window = False  # pictures show whole maps
    with scope_of(cfg):
        distiller: Any = MODELS.build(model_config(cfg))
    loaded = load_checkpoint_file(checkpoint)
    state = loaded.get('state_dict', loaded)
    missing, _ = distiller.load_state_dict(state, strict=False)
    lost = [key for key in missing if 'num_batches_tracked' not in key]
    if lost:
        raise ValueError(
            f'Expected the checkpoint of this distiller in {checkpoint!r}, but it lacks {len(lost)} of its tensors, such as '
            f'{lost[0]}. Give epoch_*.pth or iter_*.pth of its training: student_last.pth holds the student alone.'
        )
    return distiller.eval(), loaded.get('meta') or {}


@torch.no_grad()
def draw(args: argparse.Namespace) -> dict[str, Figure]:
    """Return the pictures by their names."""
    cfg = read_config(args)
    cfg.merge_from_dict(args.cfg_options or {})
    distiller, meta = build_distiller(cfg, args.checkpoint)
    # By these names a teacher may bring its classes into their order.
    Visualizer.get_instance('dskd see').dataset_meta = meta.get('dataset_meta') or {}
    load_whole_teacher(distiller)
    plain = None if args.plain is None else plain_model(*args.plain)
    rows: dict[str, list] = {}
    journeys, pictures = [], []
    specs = distiller.student_spec, distiller.teacher_spec
    count = max(num_classes(student_config(cfg).model) or 1, *(spec.num_classes for spec in specs))
    metas = [meta.get('dataset_meta'), ((cfg.get('test_dataloader') or {}).get('dataset') or {}).get('metainfo')]
    names, palette = class_names(metas, count), palette_of(metas, count)
    with scope_of(cfg):
        for path in args.images:
            batch = in_input_frame(load_image(path, cfg, distiller.student))
            picture = picture_of(batch, distiller.student)
            opinions = [opinion_of(teacher, batch) for teacher in distiller.teachers]
            found = {'Distilled student': predict(distiller.student, batch), **named(opinions)}
            if plain is not None:
                own = in_input_frame(load_image(path, plain[1], plain[0]))
                found = {'Plain student': predict(plain[0], own), **found}
            for name, sample in found.items():
                rows.setdefault(name, []).append(draw_prediction(picture.numpy(), sample, names, palette))
            if isinstance(distiller, DSKDDistiller) and distiller.diffusion is not None:
                journeys.append(follow_feature(distiller, **annotate(batch, opinions[0])))
                pictures.append(picture)
    figures: dict[str, Figure | None] = dict(predictions=grid(rows))
    if journeys:
        figures |= dict(
            maps=plot_maps(journeys, pictures, names, palette),
            plane=plot_plane(journeys, names, palette),
            steps=plot_opinions(journeys, names, palette),
        )
    return {name: figure for name, figure in figures.items() if figure is not None}


def opinion_of(teacher: Any, batch: dict[str, Any]) -> Any:
    """Return what a teacher predicts for an image, in the student's classes and in pixels of the student's input."""
    sample = predict(teacher.require_model(), in_input_frame(batch, teacher.adapt(batch['inputs'])))
    return in_class_order(sample, teacher.classes)


def named(opinions: Sequence[Any]) -> dict[str, Any]:
    """Return the teachers' predictions by what their rows are called."""
    several = len(opinions) > 1
    return {f'Teacher {index}' if several else 'Teacher': opinion for index, opinion in enumerate(opinions, start=1)}


def plain_model(config: str, checkpoint: str) -> tuple[Any, Config]:
    """Return a plain student in eval mode, and its config."""
    cfg = student_config(load_config(config))
    with scope_of(cfg):
        model: Any = MODELS.build(model_config(cfg))
    load_plain_model(model, checkpoint)
    return model.eval(), cfg


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run the command."""
    args = parse_args(argv, prog)
    MMLogger.get_instance('mmengine', log_level='WARNING')
    with in_one_line(prog or 'see'):
        lost = [path for path in args.images if not Path(path).is_file()]
        if lost:  # before models are built and loaded
            raise FileNotFoundError(f'Expected files of images, but there is none at {", ".join(lost)}.')
        figures = draw(args)
    out = args.out or Path(args.checkpoint).parent / 'see'
    out.mkdir(parents=True, exist_ok=True)
    for name, figure in figures.items():
        figure.savefig(out / f'{name}.png')
        print(out / f'{name}.png')
    absent = {'maps', 'plane', 'steps'} - set(figures)
    if absent:
        print(f'Not drawn, as this distiller has nothing for them: {", ".join(sorted(absent))}.')
