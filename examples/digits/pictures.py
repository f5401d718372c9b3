"""Draw the pictures of one task of the demo, whose runs are complete; ``make demo`` calls it.

python -m examples.digits.pictures cls --work-dir work_dirs/demo
"""

import argparse
import contextlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from mmengine.logging import MMLogger
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner, load_state_dict

from dskd_mm.utils.checkpoint import load_checkpoint_file
from dskd_mm.utils.config import model_config
from examples.digits import denoising, predictions
from examples.digits.curves import accuracy_curves
from examples.digits.experiments import NAMES, TASKS, Run, make_runs, of_role, picture_paths
from examples.digits.scenes import DigitScenes


def draw(runs: Sequence[Run]) -> dict[str, Figure]:
    """Draw all pictures of one task, by their names."""
    (teacher,), plain, dskd = (of_role(runs, role) for role in NAMES)
    task = teacher.task
    figures = {
        'accuracy': accuracy_curves(
            {NAMES['plain']: [run.curve() for run in plain], NAMES['dskd']: [run.curve() for run in dskd]},
            reference=('Teacher, last epoch', teacher.result),
            title=f'{task.metric} on the test images during training',
            ylabel=f'{task.metric} (%)',
        )
    }
    # Data sets and their pipelines are looked up in the host.
    with DefaultScope.overwrite_default_scope(teacher.cfg.default_scope):
        figures['predictions'] = predictions.DRAW[task.name]([plain[0], dskd[0], teacher])
        if task.name == 'cls':
            figures.update(draw_denoising(dskd[0]))
    return figures


def draw_denoising(distilled: Run) -> dict[str, Figure]:
    """Draw what denoising does to the features of a classifier, by the pictures' names."""
    distiller: Any = MODELS.build(model_config(distilled.cfg))
    batch = next(iter(Runner.build_dataloader(distilled.cfg.test_dataloader, seed=0)))
    checkpoints = {int(path.stem.removeprefix('epoch_')): path for path in distilled.work_dir.glob('epoch_*.pth')}
    trajectories = {}
    # Early, when the student is weak, and at the end; the same one in a run of one epoch.
    for epoch in dict.fromkeys((min(checkpoints), max(checkpoints))):
        load_state_dict(distiller, load_checkpoint_file(str(checkpoints[epoch]))['state_dict'], strict=True)
        data = distiller.data_preprocessor(batch, False)
        trajectories[f'epoch {epoch}'] = denoising.denoising_trajectory(distiller, data['inputs'], data['data_samples'])
    return {
        'denoising_steps': denoising.plot_denoising_steps(trajectories),
        'denoising_plane': denoising.plot_denoising_plane(trajectories),
        'feature_maps': denoising.plot_feature_maps(list(trajectories.values())[-1], torch.stack(list(batch['inputs']))),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('task', choices=list(TASKS))
    parser.add_argument('--work-dir', type=Path, required=True, help='that of the demo')
    parser.add_argument('--seeds', type=int, default=2, help='runs of each student')
    parser.add_argument('--epochs', type=int, help='length of every run')
    args = parser.parse_args()
    MMLogger.get_instance('demo', log_level='WARNING')  # the runs have logs of their own
    runs = make_runs(args.task, args.work_dir.resolve(), args.seeds, args.epochs, DigitScenes())
    with contextlib.redirect_stdout(io.StringIO()):  # the hosts' remarks on being imported
        figures = draw(runs)
    for path in picture_paths(args.task, args.work_dir.resolve()):
        figures[path.stem].savefig(path)


if __name__ == '__main__':
    main()
