"""Stops a training whose numbers are lost, or leaves out the step that would lose them."""

import math
import os.path as osp
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.dist import all_gather_object, get_rank
from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor

from dskd_mm.distillers import Distiller
from dskd_mm.distributed import any_rank, bare_model
from dskd_mm.registry import HOOKS
from dskd_mm.utils.legacy import register_step_pre_hook

GRADIENTS = 'gradients'
ADVICE = (
    'Look at the images and annotations of the batch, lower the learning rate, clip gradients with '
    'optim_wrapper.clip_grad.max_norm=5, or train in bfloat16 or float32 if it was float16.'
)


@dataclass
class Step:
    """What is known of one iteration before anybody has looked at it.

    Attributes:
        iteration (int): Its number, from 1 as in the log.
        names (list[str]): What the step saw.
        values (Tensor): The largest absolute value of each; on its way to the host, if ``ready`` is an event.
        batch (Any): What the data loader gave.
        ready (torch.cuda.Event, optional): When ``values`` has arrived. Defaults to None: it has.
    """

    iteration: int
    names: list[str]
    values: Tensor
    batch: Any
    ready: Any = None

    def faults(self) -> dict[str, float]:
        """What is NaN or infinite, in the order of the step: the first is nearest to the cause."""
        if self.ready is not None:
            self.ready.synchronize()
        values = zip(self.names, self.values.tolist(), strict=True)
        return {name: value for name, value in values if not math.isfinite(value)}


@HOOKS.register_module()
class CheckFiniteHook(Hook):
    """Looks in every iteration of a distiller for what is NaN or infinite: images, taps of both models, losses, gradients.

    ``action='stop'`` raises a FloatingPointError that names what it found, the iteration and a file in the work dir with the
    batch; no checkpoint is saved any more, so the last one is unharmed. On CPUs it does so in the same iteration. On GPUs the
    figures are copied while the next iteration runs and looked at then, so that nothing waits for the device; before a
    checkpoint is saved they are waited for.

    ``action='skip'`` leaves the step out in all processes if one of them found something: weights, the optimizer's state and
    the models' statistics (batch norms, hashes) stay what they were before. The number of such steps is logged as
    ``skipped_steps``, and after ``patience`` in a row training stops as above. The decision needs the figures before the
    optimizer, so the host waits for the device once in each step, as with float16's loss scaler. Gradient accumulation leaves
    out all iterations of the step. What a loss scaler skips by itself, for too large a scale, is neither counted nor touched.

    The file holds ``iteration``, ``rank``, ``magnitudes`` (name: largest absolute value) and ``batch``, what the data loader
    gave (inputs and data samples, before the data preprocessor). Data samples are objects:
    ``torch.load(path, weights_only=False)``, which is fit for files of your own.

    ``tools/train.py`` of dskd_mm adds this hook by itself; for the hosts' own training scripts write
    ``custom_hooks = [dict(type='dskd_mm.CheckFiniteHook')]``. Models that are no distillers are left alone. DeepSpeed and
    ColossalAI have optimizers of their own, whose gradients are not looked at and of which no step can be skipped.

    Args:
        action (str): 'stop' or 'skip'. Defaults to 'stop'.
        patience (int): How many steps in a row may be skipped. Defaults to 10.

    Raises:
        ValueError: If the action is another one, or the patience less than 1.
    """

    # Before averages of weights are taken and checkpoints are saved.
    priority = 'ABOVE_NORMAL'

    def __init__(self, action: str = 'stop', patience: int = 10) -> None:
        if action not in ('stop', 'skip') or patience < 1:
            raise ValueError(
                f"CheckFiniteHook expects action='stop' or 'skip' and patience >= 1, but got action={action!r}, "
                f'patience={patience}.'
            )
        self.action = action
        self.patience = patience
        self.skipped = 0
        self._in_a_row = 0
        self._distiller: Distiller | None = None
        self._handle: Any = None
        self._pending: Step | None = None
        self._found: dict[str, float] = {}
        self._buffers: list[Tensor] = []
        self._kept: list[Tensor] = []

    def before_train(self, runner: Runner) -> None:
        """Ask the distiller for its magnitudes, and the optimizer to tell before each step."""
        model = bare_model(runner.model)
        if not isinstance(model, Distiller):
            return
        self._distiller, model.magnitudes = model, {}
        optimizer = getattr(runner.optim_wrapper, 'optimizer', None)
        if isinstance(optimizer, torch.optim.Optimizer):
            self._handle = register_step_pre_hook(optimizer, self._before_step)
        elif self.action == 'skip':
            raise TypeError(
                "CheckFiniteHook(action='skip') expects an optimizer of torch, of which a step can be left out, but got "
                f"{type(optimizer or runner.optim_wrapper).__name__}: use action='stop'."
            )
        if self.action == 'skip':
            self._buffers = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
            self._kept = [buffer.clone() for buffer in self._buffers]

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Keep the statistics of the models, unless an accumulated step is under way."""
        if self._kept and self._distiller is not None and not self._distiller.magnitudes:
            torch._foreach_copy_(self._kept, self._buffers)

    def after_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None) -> None:
        """Look at the figures of this iteration, on accelerators at those of the one before."""
        if self._distiller is None:
            return
        if self.action == 'stop':
            step, self._pending = self._pending, self._take(runner.iter + 1, data_batch)
            if self._pending.ready is None:
                step, self._pending = self._pending, None
            self._stop_at(runner, step)
        elif runner.optim_wrapper.should_update():
            if self._distiller.magnitudes:  # a loss scaler has left the step out
                self._decide()
            self._report(runner, data_batch)

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Nothing is saved that came of a step which nobody has looked at."""
        step, self._pending = self._pending, None
        self._stop_at(runner, step)

    def after_train(self, runner: Runner) -> None:
        """Leave model and optimizer as they were found."""
        step, self._pending = self._pending, None
        self._stop_at(runner, step)
        if self._distiller is not None:
            self._distiller.magnitudes = None
            self._distiller = None
            if self._handle is not None:
                self._handle.remove()
            self._buffers, self._kept = [], []

    def _before_step(self, optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        assert self._distiller is not None and self._distiller.magnitudes is not None
        parameters = [p for group in optimizer.param_groups for p in group['params'] if p.grad is not None]
        # Of a fused optimizer it is the loss scaler that tells whether they are finite.
        if parameters and getattr(optimizer, 'found_inf', None) is None:
            norms = torch._foreach_norm([p.grad for p in parameters], float('inf'))
            self._distiller.magnitudes[GRADIENTS] = torch.stack([norm.float() for norm in norms]).amax()
        if self.action == 'skip' and self._decide():
            for parameter in parameters:
                parameter.grad = None  # an optimizer passes over those without

    def _take(self, iteration: int, batch: Any) -> Step:
        """The figures since the last time, which begin anew."""
        assert self._distiller is not None and self._distiller.magnitudes
        names = list(self._distiller.magnitudes)
        values = torch.stack(list(self._distiller.magnitudes.values()))
        self._distiller.magnitudes.clear()
        if values.device.type != 'cuda' or self.action == 'skip':
            return Step(iteration, names, values, batch)
        values = values.to('cpu', non_blocking=True)
        ready = torch.cuda.Event()
        ready.record()
        return Step(iteration, names, values, batch, ready)

    def _stop_at(self, runner: Runner, step: Step | None) -> None:
        faults = {} if step is None else step.faults()
        if faults:
            assert step is not None
            raise FloatingPointError(
                f'At iteration {step.iteration} of rank {get_rank()} all numbers are expected to be finite, but got '
                f'{describe(faults)}. {save(runner, step, faults)} {ADVICE} To go on without such steps: '
                "custom_hooks=[dict(type='dskd_mm.CheckFiniteHook', action='skip')]. The last checkpoint is unharmed."
            )

    def _decide(self) -> bool:
        """Whether this step is left out, the same in all processes."""
        step = self._take(0, None)
        bad = bool(any_rank(~step.values.isfinite().all()))
        self._in_a_row = self._in_a_row + 1 if bad else 0
        if bad:
            self.skipped += 1
            self._found = step.faults()
            torch._foreach_copy_(self._buffers, self._kept)
        return bad

    def _report(self, runner: Runner, batch: Any) -> None:
        runner.message_hub.update_scalar('train/skipped_steps', self.skipped)
        if not self._in_a_row:
            return
        everywhere: list[Any] = all_gather_object(self._found)
        told = '; '.join(f'rank {rank}: {describe(faults)}' for rank, faults in enumerate(everywhere) if faults)
        runner.logger.warning(f'The step of iteration {runner.iter + 1} is skipped ({self.skipped} so far): {told}.')
        if self._in_a_row >= self.patience:
            step = Step(runner.iter + 1, [], torch.empty(0), batch)
            raise FloatingPointError(
                f'{self.patience} steps in a row had to be skipped, up to iteration {step.iteration}: {told}. '
                f'{save(runner, step, self._found)} {ADVICE} The last checkpoint is unharmed.'
            )


def describe(faults: dict[str, float]) -> str:
    """What is not finite, in words; of many the first four."""
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
