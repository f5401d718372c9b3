"""Time the parts of a training step, and say how times compare."""

import statistics
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, record_function

from dskd_mm.distillers import Distiller
from dskd_mm.guidance import ClassifierGuidance, ClassifierGuide, HeadLossGuide

PARTS = ('student', 'teacher', 'anchor', 'denoiser training', 'sampling', 'guidance', 'hashing', 'other losses', 'optimizer')


def now(device: torch.device) -> float:
    """Seconds of the clock when a device has done what it was told."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
    return time.perf_counter()


def count(model: nn.Module) -> int:
    """Trainable parameters."""
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def activities(device: torch.device) -> list[ProfilerActivity]:
    """What to profile on a device."""
    return [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if device.type == 'cuda' else [])


@contextmanager
def labelled(model: nn.Module) -> Iterator[None]:
    """Mark the parts of a distiller's step for the profiler."""

    def mark(owner: Any, name: str, part: str) -> Any:
        function = getattr(owner, name)

        def marked(*args: Any, **kwargs: Any) -> Any:
            with record_function(f'part: {part}'):
                return function(*args, **kwargs)

        return mock.patch.object(owner, name, marked)

    patches = []
    if isinstance(model, Distiller):
        patches = [
            mark(model, 'distill', 'other losses'),
            mark(model, 'run_teacher', 'teacher'),
            mark(model.student, 'forward', 'student'),
            mark(ClassifierGuidance, '__call__', 'guidance'),
            mark(ClassifierGuide, 'loss', 'anchor'),
            mark(HeadLossGuide, 'loss', 'anchor'),
        ]
        if getattr(model, 'diffusion', None) is not None:
            patches += [
                mark(model.diffusion, 'loss', 'denoiser training'),
                mark(model.diffusion.sampler, 'forward', 'sampling'),
            ]
        for name, part in (('align', 'anchor'), ('lsh', 'hashing')):
            module = getattr(model, name, None)
            if isinstance(module, nn.Module):
                patches.append(mark(module, 'forward', part))
    else:
        patches = [mark(model, 'forward', 'student')]
    for patch in patches:
        patch.start()
    try:
        yield
    finally:
        for patch in patches:
            patch.stop()


def shares(events: list[FunctionEvent], device: torch.device) -> dict[str, float]:
    """Share of each part in the time of profiled events."""
    label = 'part: '

    def enclosing(event: FunctionEvent) -> Iterator[FunctionEvent]:
        parent: FunctionEvent | None = event
        while parent is not None:
            yield parent
            parent = parent.cpu_parent

    def own_part(event: FunctionEvent) -> str | None:
        return next((e.name.removeprefix(label) for e in enclosing(event) if e.name.startswith(label)), None)

    def backward_of(event: FunctionEvent) -> int | None:
        return next((e.sequence_nr for e in enclosing(event) if 'evaluate_function' in e.name), None)

    # The last operation that began with a number is the one that made the node of the graph.
    maker: dict[int, str] = {}
    for event in sorted(events, key=lambda event: event.time_range.start):
        part = own_part(event)
        if event.sequence_nr >= 0 and part is not None and backward_of(event) is None:
            maker[event.sequence_nr] = part
    found: dict[str, float] = defaultdict(float)
    for event in events:
        if event.is_async or event.device_type != torch.autograd.DeviceType.CPU:
            continue
        seconds = event.self_device_time_total if device.type == 'cuda' else event.self_cpu_time_total
        node = backward_of(event)
        part = own_part(event) if node is None else maker.get(node)
        if part is None:
            part = 'optimizer' if any('Optimizer' in e.name for e in enclosing(event)) else 'student'
        found[part] += seconds
    total = sum(found.values())
    return {part: round(found[part] / total, 4) for part in PARTS if part in found}


def ratios(name: str, own: list[float], base: list[float]) -> dict[str, float]:
    """Median and spread of the ratios within rounds."""
    values = [a / b for a, b in zip(own, base, strict=True)]
    return {f'{name}_ratio': round(statistics.median(values), 4), f'{name}_ratio_spread': round(deviation(values), 4)}


def deviation(values: list[float]) -> float:
    """Median absolute deviation from the median, scaled to the standard deviation of a normal distribution."""
    middle = statistics.median(values)
    return 1.4826 * statistics.median(abs(value - middle) for value in values)
