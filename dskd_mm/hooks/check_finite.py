"""Stop a training whose numbers are lost, and say which one was lost first."""

import math
import os.path as osp
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor

from dskd_mm.distillers import Distiller
from dskd_mm.distributed import bare_model
from dskd_mm.registry import HOOKS

WEIGHTS = 'weights after the step'


@dataclass
class Step:
    """What one iteration saw.

    Attributes:
        iteration (int): Its number, from 1 as in the log.
        names (list[str]): Names of images, taps, losses and weights, in the order of the step.
        values (Tensor): The largest absolute value of each; on its way to the host, if ``ready`` is an event.
        batch (Any): What the data loader gave.
        ready (torch.cuda.Event, optional): Tells when ``values`` has arrived. Defaults to None: it has.
    """

    iteration: int
    names: list[str]
    values: Tensor
    batch: Any
    ready: Any = None

    def faults(self) -> dict[str, float]:
        """Return what is NaN or infinite, in the order of the step: the first is nearest to the cause."""
        if self.ready is not None:
            self.ready.synchronize()
        values = zip(self.names, self.values.tolist(), strict=True)
        return {name: value for name, value in values if not math.isfinite(value)}


@HOOKS.register_module()
class CheckFiniteHook(Hook):
    """Stop a distiller's training at the first NaN or infinity in images, taps of both models, losses or weights.

    The FloatingPointError names what was found, the iteration, and a file in the work dir with the batch. No checkpoint is
    saved any more, so the last one is unharmed. On CPUs training stops in the same iteration. On GPUs the figures are copied
    while the next iteration runs and looked at then, so that nothing waits for the device; before a checkpoint is saved they
    are waited for. A step that a loss scaler leaves out, for too large a scale, changes no weight and is no fault.

    The file holds ``iteration``, ``rank``, ``magnitudes`` (name: largest absolute value) and ``batch``, what the data loader
    gave (inputs and data samples, before the data preprocessor). Data samples are objects:
    ``torch.load(path, weights_only=False)``, which is fit for files of your own.

    ``tools/train.py`` of dskd_mm adds this hook by itself; for the hosts' own training scripts write
    ``custom_hooks = [dict(type='dskd_mm.CheckFiniteHook')]``. Models that are no distillers are left alone.
    """

    # Before averages of weights are taken and checkpoints are saved.
    priority = 'ABOVE_NORMAL'

    def __init__(self) -> None:
        self._distiller: Distiller | None = None
        self._pending: Step | None = None

    def before_train(self, runner: Runner) -> None:
        """Ask the distiller for its magnitudes."""
        model = bare_model(runner.model)
        if isinstance(model, Distiller):
            self._distiller, model.magnitudes = model, {}

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Look at the figures of this iteration, on accelerators at those of the one before."""
        if self._distiller is None:
            return
        step, self._pending = self._pending, self._take(runner.iter + 1, data_batch)
        if self._pending.ready is None:
            step, self._pending = self._pending, None
        self._stop_at(runner, step)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Save nothing that came of a step which nobody has looked at."""
        step, self._pending = self._pending, None
        self._stop_at(runner, step)

    def after_train(self, runner: Runner) -> None:
        """Look at the last iteration, and leave the model as it was found."""
        step, self._pending = self._pending, None
        self._stop_at(runner, step)
        if self._distiller is not None:
            self._distiller.magnitudes = None
            self._distiller = None

    def _take(self, iteration: int, batch: Any) -> Step:
        """Return the figures since the last time, which begin anew."""
        assert self._distiller is not None and self._distiller.magnitudes
        magnitudes = self._distiller.magnitudes
        # A gradient that is lost shows in what the optimizer made of it.
        weights = [p.detach() for p in self._distiller.parameters() if p.requires_grad and p.numel()]
        if weights:
            norms = torch._foreach_norm(weights, float('inf'))
            magnitudes[WEIGHTS] = torch.stack([norm.float() for norm in norms]).amax()
        names, values = list(magnitudes), torch.stack(list(magnitudes.values()))
        magnitudes.clear()
        if values.device.type != 'cuda':
            return Step(iteration, names, values, batch)
        values = values.to('cpu', non_blocking=True)
        ready = torch.cuda.Event()
        ready.record()
        return Step(iteration, names, values, batch, ready)

    def _stop_at(self, runner: Runner, step: Step | None) -> None:
        faults = {} if step is None else step.faults()
        if step is not None and faults:
            raise FloatingPointError(
                f'At iteration {step.iteration} of rank {get_rank()} all numbers are expected to be finite, but got '
                f'{describe(faults)}. {save(runner, step, faults)} Look at the images and annotations of the batch, lower the '
                'learning rate, clip gradients with optim_wrapper.clip_grad.max_norm=5, or train in bfloat16 or float32 if it '
                'was float16. The last checkpoint is unharmed.'
            )


def describe(faults: dict[str, float]) -> str:
    """Return what is not finite in words; of many the first four."""
    names = list(faults)
    more = f' and {len(names) - 4} more' if len(names) > 4 else ''
    told = ', '.join(f'{name} ({"NaN" if math.isnan(faults[name]) else "infinite"})' for name in names[:4])
    return told + more


def save(runner: Runner, step: Step, faults: dict[str, float]) -> str:
    """Write the batch of a step to the work dir, and tell where it is or why not."""
    path = osp.join(runner.work_dir, f'not_finite_iter_{step.iteration}_rank_{get_rank()}.pth')
    content = dict(iteration=step.iteration, rank=get_rank(), magnitudes=faults, batch=step.batch)
    try:
        torch.save(content, path)
    except (OSError, RuntimeError) as error:  # training ends for another reason, which is the one to tell
        return f'The batch could not be saved to {path}: {error}.'
    return f'The batch is saved to {path}: torch.load(path, weights_only=False).'
