"""Measure what distillation adds to a training step: time, memory, parameters and operations.

Methods are compared on one pair of models, their steps taken in turns within one process, so that whatever slows the machine
down slows all of them alike. Weights are random and images synthetic: neither changes the cost, and no data are loaded.

    python benchmarks/cost.py configs/dskd/resnet18_r34_in1k.py --batch 32 --size 224 224
    python benchmarks/cost.py configs/dskd/retinanet_r101_r50.py --size 320 512 --against plain,diffkd,fitnet
    python benchmarks/cost.py --growth

Results are appended to benchmarks/results/cost.jsonl; ``benchmarks/report.py`` makes docs/en/cost.md's tables and pictures of
them. ``--growth`` measures how the cost of DSKD alone grows with steps, channels, map size, batch, levels and bits.
"""

import argparse
import copy
import gc
import json
import shlex
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from mmengine.config import Config, DictAction
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS, DefaultScope
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

if not __package__:  # called as a script, which sees its own folder only
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from benchmarks.cost_growth import growth
from benchmarks.profiling import activities, count, deviation, labelled, now, ratios, shares
from benchmarks.records import append, origin
from benchmarks.runner import ROOT
from dskd_mm.distillers import Distiller
from dskd_mm.optim import BF16OptimWrapper
from dskd_mm.utils.config import load_config, model_config, student_config
from dskd_mm.utils.methods import apply_method, suits
from dskd_mm.utils.synthetic import synthetic_batch

RESULTS = ROOT / 'benchmarks' / 'results' / 'cost.jsonl'
TEACHER_FREE = {'model.target': 'label', 'model.loss_weights.logit': 0}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {'teacher_free': ('dskd', TEACHER_FREE)}
"""Methods with other options: the method and the options by the name that records carry."""


class Contestant:
    """One method on one pair of models, ready to take training steps.

    Args:
        config (Path): Config of the pair under DSKD.
        name (str): A method, a variant, or 'plain'.
        teacher (str): Checkpoint of the teacher.
        args (argparse.Namespace): Batch, size, device, precision.
    """

    def __init__(self, config: Path, name: str, teacher: str, args: argparse.Namespace) -> None:
        self.name = name
        self.method, options = VARIANTS.get(name, (name, {}))
        cfg = Config.fromfile(config)
        if self.method not in ('plain', 'dskd'):
            cfg = apply_method(cfg, self.method)
        cfg.merge_from_dict({**options, **args.cfg_options} if self.method == 'dskd' else options)
        cfg.model.teacher.checkpoint = teacher
        model = student_config(cfg).model if name == 'plain' else cfg.model
        model.setdefault('data_preprocessor', cfg.get('data_preprocessor'))
        torch.manual_seed(0)
        with DefaultScope.overwrite_default_scope(cfg.default_scope):
            self.model: Any = MODELS.build(model)
        self.model.to(args.device).train()
        self.device = torch.device(args.device)
        # Without a learning rate weights stay as they are drawn: a step costs the same, and nothing diverges.
        optimizer = torch.optim.SGD(self.model.parameters(), lr=0.0, momentum=0.9)
        self.optim: OptimWrapper = OptimWrapper(optimizer)
        if args.amp:
            self.optim = BF16OptimWrapper(optimizer=optimizer)
        batch = synthetic_batch(cfg, args.batch, args.size)
        self.data: dict = self.model.data_preprocessor(copy.deepcopy(batch), True)
        self.teacher_seconds: list[float] = []
        if isinstance(self.model, Distiller):
            self.model.run_teacher = self._timed(self.model.run_teacher)

    def step(self) -> float:
        """Take one step; the seconds that it took."""
        start = now(self.device)
        with self.optim.optim_context(self.model):
            losses = self.model(**self.data, mode='loss')
        loss, _ = self.model.parse_losses(losses)
        self.optim.update_params(loss)
        return now(self.device) - start

    def _timed(self, function: Callable) -> Callable:
        def timed(*args: Any) -> Any:
            start = now(self.device)
            result = function(*args)
            self.teacher_seconds.append(now(self.device) - start)
            return result

        return timed

    @property
    def uses_teacher_forward(self) -> bool:
        """Whether its steps run the teacher."""
        return isinstance(self.model, Distiller) and self.model.uses_teacher_forward

    def added_parameters(self) -> int:
        """Trainable parameters beside the student's."""
        if not isinstance(self.model, Distiller):
            return 0
        return count(self.model) - count(self.model.student)

    def kept_bytes(self) -> int:
        """What stays in memory between steps: the model, the teacher and the optimizer's state."""
        tensors = [*self.model.parameters(), *self.model.buffers()]
        if isinstance(self.model, Distiller):
            teacher = self.model.teacher
            for module in (teacher.model, *teacher.classifiers):
                tensors += [] if module is None else [*module.parameters(), *module.buffers()]
        for state in self.optim.optimizer.state.values():
            tensors += [value for value in state.values() if isinstance(value, torch.Tensor)]
        return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())

    def peak_bytes(self) -> int:
        """The most memory that a step needs, with what it keeps."""
        if self.device.type == 'cuda':
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            before = torch.cuda.memory_allocated(self.device)
            self.step()
            return self.kept_bytes() + torch.cuda.max_memory_allocated(self.device) - before
        gc.collect()
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            self.step()
        events = [event for event in profiler.profiler.kineto_results.events() if event.name() == '[memory]']
        level = peak = 0
        # torch 2.1 knows no nanoseconds; sorting leaves what began in the same microsecond in its order.
        for event in sorted(events, key=lambda event: event.start_ns() if hasattr(event, 'start_ns') else event.start_us()):
            level += event.nbytes()
            peak = max(peak, level)
        return self.kept_bytes() + peak

    def operations(self) -> int:
        """Floating-point operations of a step: two for each multiplication and addition of products and convolutions."""
        with FlopCounterMode(display=False) as counter:
            self.step()
        return counter.get_total_flops()

    def parts(self) -> dict[str, float]:
        """Share of a step's time by part; what runs backward counts for the part whose forward pass made it."""
        with labelled(self.model), profile(activities=activities(self.device)) as profiler:
            self.step()
        return shares(list(profiler.events()), self.device)


class SamplerCall:
    """One call of a distiller's sampler, to be repeated beside the bare forward passes of the denoiser that it makes.

    Args:
        contestant (Contestant): One with a sampler.
    """

    def __init__(self, contestant: Contestant) -> None:
        self.contestant = contestant
        self.sampler: Any = contestant.model.get_submodule('diffusion.sampler')
        with mock.patch.object(self.sampler, 'forward', wraps=self.sampler.forward) as call:
            contestant.step()
        self.args = call.call_args.args

    def seconds(self, bare: bool, steps: int | None = None) -> float:
        """Time of the call, or of as many passes through the denoiser."""
        denoiser, schedule, start, noise, *rest = self.args
        with torch.no_grad(), mock.patch.object(self.sampler, 'steps', steps or self.sampler.steps):
            timesteps = schedule.timesteps(self.sampler.steps, self.sampler.start)
            begin = now(self.contestant.device)
            if bare:
                for timestep in timesteps:
                    denoiser(start, timestep)
            else:
                self.sampler(denoiser, schedule, start, noise, *rest)
            return now(self.contestant.device) - begin


def measure(config: Path, args: argparse.Namespace) -> Iterator[dict]:
    """Compare the methods on one pair; one record each."""
    with tempfile.TemporaryDirectory() as folder:
        cfg = Config.fromfile(config)
        teacher = str(Path(folder) / 'teacher.pth')
        save_random_teacher(cfg, teacher)
        names = ['plain', 'dskd', *VARIANTS]
        names += [name for name in args.against if name not in names and suits(name, cfg)]
        contestants = [Contestant(config, name, teacher, args) for name in names]
        for contestant in contestants:  # the first step loads the teacher
            for _ in range(args.warmup):
                contestant.step()
    seconds: dict[str, list[float]] = defaultdict(list)
    for index in range(args.rounds):
        for contestant in contestants:
            seconds[contestant.name].append(contestant.step())
        print(f'round {index + 1}/{args.rounds}: ' + ', '.join(f'{n} {seconds[n][-1]:.3f} s' for n in names), flush=True)
    peak = {contestant.name: contestant.peak_bytes() for contestant in contestants}
    operations = {contestant.name: contestant.operations() for contestant in contestants}
    whole_teacher = next(c for c in contestants if c.name == 'dskd').teacher_seconds
    for contestant in contestants:
        name, own = contestant.name, seconds[contestant.name]
        # At the neck a method runs less of the teacher than one that reads its head.
        teacher_seconds = (contestant.teacher_seconds or whole_teacher)[args.warmup : args.warmup + args.rounds]
        floor = [p + t for p, t in zip(seconds['plain'], teacher_seconds, strict=True)]
        base = floor if contestant.uses_teacher_forward else seconds['plain']
        record = dict(
            config=str(config.relative_to(ROOT) if config.is_relative_to(ROOT) else config),
            method=contestant.method,
            variant=name,
            options=args.cfg_options,
            device=contestant.device.type,
            device_name=torch.cuda.get_device_name() if contestant.device.type == 'cuda' else f'{args.threads} thread(s)',
            images=args.batch,
            size=list(args.size),
            amp=args.amp,
            rounds=args.rounds,
            step_seconds=round(statistics.median(own), 5),
            step_spread=round(deviation(own), 5),
            **ratios('step', own, seconds['plain']),
            **ratios('floor', own, floor),
            teacher_seconds=round(statistics.median(teacher_seconds), 5),
            added_seconds=round(statistics.median(a - b for a, b in zip(own, base, strict=True)), 5),
            uses_teacher_forward=contestant.uses_teacher_forward,
            peak_bytes=peak[name],
            memory_ratio=round(peak[name] / peak['plain'], 4),
            added_parameters=contestant.added_parameters(),
            step_flops=operations[name],
            added_flops=operations[name] - operations['plain'],
            parts=contestant.parts(),
        )
        if getattr(contestant.model, 'diffusion', None) is not None:
            record |= sampler_record(contestant, args)
        yield record


def save_random_teacher(cfg: Config, path: str) -> None:
    """Save a teacher of a distiller's config with random weights."""
    config = load_config(cfg.model.teacher.config)
    torch.manual_seed(1)
    with DefaultScope.overwrite_default_scope(cfg.default_scope):
        model = MODELS.build(model_config(student_config(config)))
    torch.save(dict(state_dict=model.state_dict()), path)


def sampler_record(contestant: Contestant, args: argparse.Namespace) -> dict:
    """The sampler beside the bare forward passes of its denoiser, with guidance and without."""
    call = SamplerCall(contestant)
    guided, unguided, bare = [], [], []
    for _ in range(args.rounds):
        guided.append(call.seconds(bare=False))
        with mock.patch.object(call.sampler, 'scale', 0.0):
            unguided.append(call.seconds(bare=False))
        bare.append(call.seconds(bare=True))
    return {**ratios('sampler', guided, bare), **ratios('unguided_sampler', unguided, bare)}


def write(record: dict, path: Path) -> None:
    """Add what all records have, and write one."""
    arguments = sys.argv[1:]
    if '--results' in arguments:  # where a record is kept is no part of what it is
        place = arguments.index('--results')
        del arguments[place : place + 2]
    command = shlex.join(['python', 'benchmarks/cost.py', *arguments])
    record |= dict(command=command, **origin())
    append(path, [record])
    shown = {key: value for key, value in record.items() if key not in ('versions', 'command')}
    print(json.dumps(shown), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('configs', nargs='*', type=Path, metavar='CONFIG', help='configs of configs/dskd')
    parser.add_argument('--against', default='kd,diffkd,fitnet', help='methods to compare with; default: %(default)s')
    parser.add_argument('--batch', type=int, default=2, help='images a step; default: %(default)s')
    parser.add_argument(
        '--size', type=int, nargs=2, default=(224, 224), metavar=('H', 'W'), help='of the images; default: 224 224'
    )
    parser.add_argument('--rounds', type=int, default=7, help='timed steps of each method; default: %(default)s')
    parser.add_argument('--warmup', type=int, default=2, help='steps before; default: %(default)s')
    parser.add_argument('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    parser.add_argument('--threads', type=int, default=1, help='of the CPU; default: %(default)s')
    parser.add_argument('--amp', action='store_true', help='train in bfloat16')
    parser.add_argument('--growth', action='store_true', help='how the cost of DSKD grows, instead of comparing methods')
    parser.add_argument('--results', type=Path, default=RESULTS, help='file to append to; default: %(default)s')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, default={}, help='options of the DSKD contestants')
    args = parser.parse_args()
    args.against = args.against.split(',')
    args.size = tuple(args.size)
    if bool(args.configs) == args.growth:
        parser.error('expected configs to compare methods on, or --growth, one of them')
    torch.set_num_threads(args.threads)
    if args.growth:
        for record in growth(args):
            write(record, args.results)
    for config in args.configs:
        for record in measure(config.resolve(), args):
            write(record, args.results)


if __name__ == '__main__':
    main()
