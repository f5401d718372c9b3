"""How the cost of DSKD alone grows with steps, channels, map size, batch, levels and bits."""

import argparse
import statistics
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import torch
from mmengine.model import BaseModel
from torch import nn

from benchmarks.profiling import count, deviation, now
from dskd_mm.distillers import DSKDDistiller
from dskd_mm.guidance import TeacherClassifier
from dskd_mm.sites import Site
from dskd_mm.structures import TapSpec, Target

GROWTH_CLASSES = 20
BASE = dict(steps=5, channels=256, size=32, images=4, levels=1, bits=2048)
"""What is measured when nothing else is said: 4 maps of 32 x 32 with 256 channels."""
GROWTH: dict[str, tuple[int, ...]] = dict(
    steps=(1, 2, 5, 10, 20),
    channels=(64, 128, 256, 512, 1024, 2048),
    size=(8, 16, 32, 64),
    images=(1, 2, 4, 8, 16),
    levels=(1, 2, 3, 5),
    bits=(256, 1024, 2048, 8192),
)
"""How far each is varied while the others stay."""


class Source(BaseModel):
    """A student that is nothing but its features, parameters, so that all that a step costs is the distillation."""

    def __init__(self, images: int, channels: int, sizes: list[int]) -> None:
        super().__init__()
        self.maps = nn.ParameterList(torch.randn(images, channels, size, size) for size in sizes)
        self.tap, self.classifier = nn.Identity(), nn.Conv2d(channels, GROWTH_CLASSES, 1)

    def forward(self, inputs: Any, data_samples: Any = None, mode: str = 'loss') -> dict[str, torch.Tensor]:
        """Show the features to whoever taps them."""
        return {'loss': sum(self.classifier(self.tap(level)).sum() for level in self.maps) * 0}  # type: ignore[dict-item]


class SourceSite(Site):
    """The site of :class:`Source`: a 1x1 classifier at every location, random classes, all locations of an image hashed."""

    vectors_per_image = 256

    def __init__(self, channels: int, levels: int) -> None:
        self.spec = TapSpec(
            part='',
            classifiers=('classifier',),
            sigmoid=False,
            num_classes=GROWTH_CLASSES,
            features=('tap',),
            io='output',
            channels=channels,
            is_dense=True,
            strides=tuple((2**i, 2**i) for i in range(levels)),
        )

    def student_spec(self, model: nn.Module) -> TapSpec:
        """See :meth:`Site.student_spec`."""
        return self.spec

    def teacher_spec(self, model: nn.Module | None, teacher: Any) -> TapSpec:
        """See :meth:`Site.teacher_spec`."""
        return self.spec

    def target(self, record: Any, data_samples: Any, num_classes: int, sigmoid: bool) -> Target:
        """Random classes."""
        shapes = [(level.shape[0], level.shape[2] * level.shape[3]) for level in record.logits]
        labels = torch.cat([torch.randint(num_classes, shape, device=record.logits[0].device) for shape in shapes], dim=1)
        return Target(nn.functional.one_hot(labels, num_classes).transpose(1, 2).float())


class Growing:
    """DSKD on features of a given size, without a student or a teacher around it.

    Args:
        device (str): Where.
        steps (int): Sampling steps.
        channels (int): Channels of the features.
        size (int): Height and width of the finest level; each further one has half of them.
        images (int): Images in a batch.
        levels (int): Levels of the pyramid.
        bits (int): Bits of the hash.
    """

    def __init__(self, device: str, steps: int, channels: int, size: int, images: int, levels: int, bits: int) -> None:
        torch.manual_seed(0)
        source = Source(images, channels, [max(size >> i, 1) for i in range(levels)])
        self.model = DSKDDistiller(
            source,
            dict(config=dict(model=dict(type='none')), checkpoint='none'),
            site=SourceSite(channels, levels),
            target='label',
            window=False,
            loss_weights=dict(logit=0),
            sampler=dict(steps=steps),
            lsh=dict(bits=bits),
        ).to(device)
        self.model.teacher.classifiers = [TeacherClassifier.from_layer(source.classifier).to(device)]
        self.images, self.device = images, torch.device(device)

    def step(self) -> float:
        """Seconds of a step, forward and backward."""
        begin = now(self.device)
        losses = self.model(torch.zeros(self.images, 1, 1, 1, device=self.device), [None] * self.images, mode='loss')
        self.model.parse_losses(losses)[0].backward()
        seconds = now(self.device) - begin
        self.model.zero_grad(set_to_none=True)
        return seconds


def growth(args: argparse.Namespace) -> Iterator[dict]:
    """How a step of DSKD's own grows; one record for each point of each axis."""
    points = {(axis, value): BASE | {axis: value} for axis, values in GROWTH.items() for value in values}
    for axis in GROWTH:
        own = {key: Growing(args.device, **given) for key, given in points.items() if key[0] == axis}
        seconds: dict[tuple[str, int], list[float]] = defaultdict(list)
        for _ in range(args.warmup + args.rounds):
            for key, growing in own.items():
                seconds[key].append(growing.step())
        for key, growing in own.items():
            timed = seconds[key][args.warmup :]
            yield dict(
                growth=axis,
                value=key[1],
                **{name: points[key][name] for name in BASE},
                device=args.device,
                rounds=args.rounds,
                step_seconds=round(statistics.median(timed), 5),
                step_spread=round(deviation(timed), 5),
                added_parameters=count(growing.model) - count(growing.model.student),
            )
