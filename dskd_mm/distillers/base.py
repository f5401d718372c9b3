"""What every distiller shares: a student that stays a plain model, and a teacher outside of it."""

import copy
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.dist import get_rank
from mmengine.logging import print_log
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS as MMENGINE_MODELS
from torch import Tensor, nn
from torch.nn import functional as F

from dskd_mm.features import fill_channels, match_space
from dskd_mm.guidance import Target
from dskd_mm.losses import AlignedFeatureLoss, BoxLoss, FeatureLoss, LogitLoss
from dskd_mm.registry import MODELS
from dskd_mm.sites import SITES_BY_MODEL, Layer, Observation, Observed, Port, Site, build_site
from dskd_mm.teacher import FrozenTeacher
from dskd_mm.utils.arguments import check_arguments
from dskd_mm.utils.checkpoint import STUDENT_PREFIX

HeadLoss = Callable[[Sequence[Tensor]], Tensor]


@dataclass(frozen=True)
class Readable:
    """What is known of the maps that a loss may read before any step.

    Attributes:
        student_channels (int): Channels of the student's.
        teacher_channels (int): Channels of the teacher's.
        is_map (bool): Whether they have height and width; of a layer it is supposed. Defaults to True.
    """

    student_channels: int
    teacher_channels: int
    is_map: bool = True


class Distiller(BaseModel):
    """Base of all distillers.

    ``predict`` and ``tensor`` are the student's own, untouched; only ``loss`` adds anything. The state dict is that of the
    student under ``student.`` plus the trainable modules of the distiller; the teacher is in none of it. A plain student's
    checkpoint loads as well.

    Subclasses build their modules in ``__init__`` and implement :meth:`distill`. Whatever the method, ``distill_losses`` are
    added to its own, so methods combine: DSKD and DIST, VkD and logits.

    Args:
        student (dict | nn.Module): The student: a host's model.
        teacher (dict): Arguments of :class:`~dskd_mm.teacher.FrozenTeacher`: config and checkpoint.
        site (dict, optional): Arguments of the task's site, see :mod:`dskd_mm.sites`. Chosen by the student's type by default.
        layers (dict[str, dict], optional): Further modules that losses may read, by a name of your own:
            ``dict(student=dict(path=...), teacher=dict(path=...))`` each, the arguments of :class:`~dskd_mm.sites.Layer`.
            Channels that are not given are found by a pass on the meta device. Defaults to None.
        distill_losses (dict[str, dict], optional): Losses to add, configs of :class:`~dskd_mm.losses.LogitLoss`,
            :class:`~dskd_mm.losses.FeatureLoss` and :class:`~dskd_mm.losses.BoxLoss` by a name of your own; they are logged as
            ``loss_<name>``. Defaults to None.
        warmup (int): Iterations over which ``distill_losses`` (and what :attr:`warmed_losses` names) grow linearly from 0 to
            their weight; their factor is logged as ``distill_warmup``. Defaults to 0.
        noise_seed (int, optional): Seed of all noise. None takes that of the run. Defaults to None.
        data_preprocessor (dict, optional): Given to the student if it has none of its own: the runner passes it here.
            Defaults to None.
        unknown: Refused, with what the distiller takes.

    Raises:
        TypeError: If student or teacher are of a wrong kind, or an argument is not known.
        ValueError: If their classifiers cannot be found or do not fit each other, a loss reads what is not there, or ``warmup``
            is negative.
    """

    default_sites: ClassVar[Mapping[str, str]] = SITES_BY_MODEL
    """The site by the student's class, where none is given."""
    compares_with_teacher: ClassVar[bool] = False
    """Whether the method itself always needs what the teacher makes of the images."""
    warmed_losses: ClassVar[Collection[str]] = ()
    """Those of the method's own losses that warm up beside ``distill_losses``."""
    iteration: Tensor
    noise_seed: Tensor
    magnitudes: dict[str, Tensor] | None = None
    """The largest absolute value of all that steps see, by what it is called: images, taps, losses. Whoever wants them puts an
    empty dict here and empties it again, as :class:`~dskd_mm.hooks.CheckFiniteHook` does; with None nobody does."""

    def __init__(
        self,
        student: dict | nn.Module,
        teacher: dict,
        site: dict | Site | None = None,
        layers: dict[str, dict] | None = None,
        distill_losses: dict[str, dict] | None = None,
        warmup: int = 0,
        noise_seed: int | None = None,
        data_preprocessor: dict | nn.Module | None = None,
        **unknown: Any,
    ) -> None:
        check_arguments(type(self), unknown)
        if warmup < 0:
            raise ValueError(f'warmup of {type(self).__name__} must not be negative, but got {warmup}.')
        model = build_student(student, data_preprocessor)
        super().__init__(data_preprocessor=model.data_preprocessor)
        self.student = model
        self.teacher = build_teacher(teacher)
        self.site = build_site(site, model, self.default_sites)
        own, theirs = split_layers(layers or {}, model, self.teacher)
        self.student_port = replace(self.site.student_port(model), layers=own)
        # The head alone tells the shapes: nothing of the teacher is loaded before the first training step.
        self.teacher_port = replace(self.site.teacher_port(None, self.teacher), layers=theirs)
        check_ports(self.student_port, self.teacher_port)
        check_loss_names(distill_losses or {})
        self.distill_losses = nn.ModuleDict(
            {
                name: build_loss(f'distill_losses.{name}', config, self.student_port, self.teacher_port, self.readable)
                for name, config in (distill_losses or {}).items()
            }
        )
        self.warmup = warmup
        seed = torch.initial_seed() if noise_seed is None else noise_seed
        self.register_buffer('noise_seed', torch.tensor(seed % 2**62))
        self.register_buffer('iteration', torch.zeros((), dtype=torch.long))
        # The buffers are what checkpoints keep; these copies save a read from the device in every step.
        self._clock: tuple[int, int] | None = None
        self._is_first_step = True
        self._is_ready = False
        self._register_load_state_dict_pre_hook(self._accept_student_checkpoint)

    @property
    def uses_teacher_forward(self) -> bool:
        """Whether training runs the whole teacher; otherwise only its classifier's weights are loaded."""
        return self.compares_with_teacher or len(self.distill_losses) > 0

    @property
    def readable(self) -> dict[str, Readable]:
        """What losses may read of both models by its name, see :meth:`Observed.maps`, and what is known of it beforehand."""
        own, theirs = self.student_port, self.teacher_port
        known = {'feature': Readable(own.channels, theirs.channels, own.is_map)}
        if theirs.classifiers:
            # An image is classified as a whole, wherever its feature is tapped.
            known['logits'] = Readable(own.num_classes, theirs.num_classes, own.is_map and self.site.task != 'classification')
        return known | {name: Readable(layer.channels, theirs.layers[name].channels) for name, layer in own.layers.items()}

    def distill(
        self, student: Observed, teacher: Observed | None, target: Target | None, head_loss: HeadLoss
    ) -> dict[str, Tensor]:
        """The method's own losses, under keys that begin with ``loss_``, and health figures under keys without 'loss'.

        Args:
            student (Observed): The student's features and logits, in the graph.
            teacher (Observed, optional): The teacher's, resized to the student's resolutions, if the teacher runs.
            target (Target, optional): The annotations, if the site has a linear classifier.
            head_loss (Callable): Loss of the teacher's own head on maps (a mean over the batch), if it has none.
        """
        return {}

    def forward(self, inputs: Tensor, data_samples: list | None = None, mode: str = 'tensor') -> Any:
        """Run the student, with distillation in mode 'loss'.

        Args:
            inputs (Tensor): Images of shape (B, C, H, W).
            data_samples (list, optional): Annotations of the batch; needed for mode 'loss'. Defaults to None.
            mode (str): 'loss', 'predict' or 'tensor'. Defaults to 'tensor'.

        Returns:
            Any: For 'loss' a dict of the student's own losses, under their own names, and those of the distillation.
        """
        if mode != 'loss':
            return self.student(inputs, data_samples, mode=mode)
        if not data_samples:
            raise ValueError(
                f"Mode 'loss' expects data_samples, the annotations of the {len(inputs)} images, but got {data_samples!r}. To "
                "predict, use mode='predict'."
            )
        return self.loss(inputs, data_samples)

    def loss(self, inputs: Tensor, data_samples: list) -> dict[str, Tensor]:
        """Losses of one training step; see :meth:`forward`."""
        if not self._is_ready:
            self.load_teacher()
        if inputs.ndim != 4 or not inputs.numel() or len(inputs) != len(data_samples):
            raise ValueError(
                "Mode 'loss' expects images (B, C, H, W) of at least one pixel and an annotation for each, but got images of "
                f'the shape {tuple(inputs.shape)} and {len(data_samples)} annotations. Check the pipeline and its crops.'
            )
        self.site.check(data_samples, self.student_port.num_classes)
        with Observation(self.student, self.student_port, 'student') as seen:
            self._note([('images', inputs)])
            losses = self.student(inputs, data_samples, mode='loss')
            features = seen.features
            self._note(seen.captured)
            if self.magnitudes is None:
                self._check_finite(features)
            if self._is_first_step and self.student_port.is_pooled:
                (path,) = self.student_port.classifiers
                check_pooling(features[0], seen.logits[0], self.student.get_submodule(path))
            port = self.teacher_port
            student = Observed(features, seen.logits, seen.boxes, seen.layers, self.student_port.anchors)
            target = self.site.target(seen, data_samples, port.num_classes, port.sigmoid)
            teacher = self._run_teacher(inputs, data_samples, seen) if self.uses_teacher_forward else None

            def head_loss(maps: Sequence[Tensor]) -> Tensor:
                with self.teacher.precision():
                    return self.site.head_loss(self.teacher, maps, inputs, data_samples)

            try:
                own = self.distill(student, teacher, target, head_loss)
                added = {}
                if len(self.distill_losses):
                    assert teacher is not None
                    added = self._add_losses(student, teacher, target)
            except ValueError as error:
                if 'more than 1 value per channel' not in str(error):
                    raise
                raise ValueError(
                    f'A batch norm of {type(self).__name__} expects several vectors, but got the only one of a single image or '
                    'proposal. Train on at least 2 images at a time (drop_last=True in the train dataloader), or take '
                    "norm='GN' for the modules of the distiller: model.align.norm=GN model.denoiser.norm=GN of DSKD (and "
                    'model.autoencoder.norm=GN where there is one), '
                    'model.pairs.<name>.norm=GN model.pairs.<name>.output.norm=GN of DiffKD, model.adapter.norm=GN of SoKD, '
                    'model.distill_losses.<name>.align.norm=GN of losses on features.'
                ) from error
        check_names(losses, own, added)
        taught = {**own, **added}
        if self.warmup:
            taught['distill_warmup'] = factor = torch.clamp((self.iteration + 1) / self.warmup, max=1.0)
            taught |= {name: factor * taught[name] for name in (*added, *self.warmed_losses) if name in taught}
        self._is_first_step = False
        self._tick()
        found = {**losses, **taught}
        self._note(named_losses(found))
        return found

    def get_layer_depth(self, param_name: str) -> tuple[int, int]:
        """How deep a parameter lies in the student, for mmpretrain's ``LearningRateDecayOptimWrapperConstructor``.

        Args:
            param_name (str): The parameter's name in the distiller.

        Returns:
            tuple[int, int]: The index of its layer and the number of layers; the distiller's own belong to the last.
        """
        return self.student.get_layer_depth(param_name.removeprefix(STUDENT_PREFIX))

    def train_step(self, data: Any, optim_wrapper: Any) -> dict[str, Tensor]:
        """One step of mmengine's runner."""
        if self._is_first_step:
            check_parameter_groups(optim_wrapper)
        return super().train_step(data, optim_wrapper)

    def val_step(self, data: Any) -> list:
        """The student's own."""
        return self.student.val_step(data)

    def test_step(self, data: Any) -> list:
        """The student's own."""
        return self.student.test_step(data)

    def load_teacher(self) -> None:
        """Build and load the teacher, or its classifier alone, where the student is."""
        device = next(self.student.parameters()).device
        port = self.teacher_port
        # Without a linear classifier it is the teacher's whole head that guides.
        full = self.uses_teacher_forward or not port.classifiers
        # A copy of this distiller (EMA's) has the same teacher, and finds it loaded.
        if not self.teacher.is_loaded:
            self.teacher.load(port.part, port.classifiers, port.sigmoid, port.anchors, device, full, self.data_preprocessor)
        self._is_ready = True
        if self.teacher.model is not None:
            self.teacher_port = replace(
                self.site.teacher_port(self.teacher.model, self.teacher), layers=self.teacher_port.layers
            )

    def noise_generator(self, device: torch.device, *key: int) -> torch.Generator:
        """A generator that follows from seed, rank and iteration alone.

        A resumed run thereby continues the same sequence, and ranks draw different noise, whatever the seed of the run.

        Args:
            device (torch.device): Where it draws.
            key (int): Numbers that tell apart what draws in the same step and shall not draw the same. Defaults to none.
        """
        entropy = np.random.SeedSequence([*self._read_clock(), get_rank()], spawn_key=key).generate_state(1, np.uint64)[0]
        return torch.Generator(device).manual_seed(int(entropy >> np.uint64(1)))

    @property
    def step_index(self) -> int:
        """The iteration as a number of the host."""
        return self._read_clock()[1]

    def _read_clock(self) -> tuple[int, int]:
        if self._clock is None:
            self._clock = int(self.noise_seed), int(self.iteration)
        return self._clock

    def _tick(self) -> None:
        self.iteration += 1
        if self._clock is not None:
            self._clock = self._clock[0], self._clock[1] + 1

    def _run_teacher(self, inputs: Tensor, data_samples: list, student: Observation) -> Observed:
        assert self.teacher.model is not None
        with torch.no_grad(), self.teacher.precision(), Observation(self.teacher.model, self.teacher_port, 'teacher') as seen:
            self.site.run_teacher(self.teacher, inputs, data_samples, student)
            self._note(seen.captured)
            return Observed(
                match_levels(seen.features, student.features),
                match_levels(seen.logits, student.logits),
                match_levels(seen.boxes, student.boxes),
                {name: [level.float() for level in maps] for name, maps in seen.layers.items()},
                self.teacher_port.anchors,
            )

    def _add_losses(self, student: Observed, teacher: Observed, target: Target | None) -> dict[str, Tensor]:
        found = {}
        generator = self.noise_generator(student.features[0].device, 1)  # 1: not the noise of the method itself
        for name, loss in self.distill_losses.items():
            if isinstance(loss, LogitLoss):
                assert student.logits is not None and teacher.logits is not None and target is not None
                value = loss(student.logits, teacher.logits, target, self.teacher_port.sigmoid)
            elif isinstance(loss, BoxLoss):
                assert student.boxes is not None and teacher.boxes is not None and target is not None
                assert self.student_port.boxes is not None
                value = loss(student.boxes, teacher.boxes, target, self.student_port.boxes.kind)
            else:
                assert isinstance(loss, FeatureLoss)
                ours = student.maps(loss.on)
                value = loss(ours, match_levels(teacher.maps(loss.on), ours), generator)
            found[f'loss_{name}'] = value
        return found

    def _note(self, named: Iterable[tuple[str, Tensor]]) -> None:
        """Add to :attr:`magnitudes`, without a read from the device."""
        if self.magnitudes is None:
            return
        for name, value in named:
            if value.numel() and value.is_floating_point():
                # Of all norms this one cannot overflow, reads the tensor once, and keeps what is not a number.
                largest = torch.linalg.vector_norm(value.detach(), float('inf'), dtype=torch.float32)
                before = self.magnitudes.get(name)
                self.magnitudes[name] = largest if before is None else torch.maximum(before, largest)

    def _check_finite(self, features: Sequence[Tensor]) -> None:
        for level, feature in enumerate(features):
            # On an accelerator the check would make every step wait for the device.
            if feature.device.type == 'cpu' and not bool(torch.isfinite(feature).all()):
                count = int((~torch.isfinite(feature)).sum())
                port = self.student_port
                where = f'level {level} of the ' if len(features) > 1 else ''
                raise FloatingPointError(
                    f'The {where}{port.io} of {port.features[level % len(port.features)]!r} in the student is expected to be '
                    f'finite, but {count} of its {feature.numel()} values are NaN or infinite at iteration '
                    f'{int(self.iteration)}. Check the images, lower the learning rate or clip gradients; the last checkpoint '
                    'is unharmed.'
                )

    def __getattr__(self, name: str) -> Any:
        # The hosts' hooks and wrappers ask a model for its parts: bbox_head, out_channels, ...
        try:
            return super().__getattr__(name)
        except AttributeError:
            student = self.__dict__.get('_modules', {}).get('student')
            if student is None or name.startswith('_') or not hasattr(student, name):
                raise
            return getattr(student, name)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> 'Distiller':
        # Overridden instead of .to(): wrappers (test-time augmentation, DDP) move their children through it.
        super()._apply(fn, recurse)
        self.teacher.apply_to_tensors(fn)
        return self

    def _accept_student_checkpoint(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        self._clock = None
        if any(key.startswith(prefix + STUDENT_PREFIX) for key in state_dict):
            return
        keys = [key.removeprefix(prefix) for key in state_dict if key.startswith(prefix)]
        if set(self.student.state_dict()).isdisjoint(keys):
            raise ValueError(
                f'The checkpoint is expected to hold a {type(self.student).__name__} student or a distiller of one, but none '
                f'of its {len(keys)} keys ({", ".join(keys[:3])}, ...) belongs to it: is it of another architecture?'
            )
        # All of them: what does not fit is for the student to translate or for the loading to report.
        for key in keys:
            state_dict[prefix + STUDENT_PREFIX + key] = state_dict.pop(prefix + key)


def named_losses(losses: Mapping[str, Tensor | Sequence[Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """What of a model's losses enters their sum, one by one: heads return lists where there are levels."""
    for name, value in losses.items():
        if 'loss' in name:
            for level in [value] if isinstance(value, Tensor) else value:
                yield f'loss {name!r}', level


def check_loss_names(losses: Any) -> None:
    """Verify that ``distill_losses`` names losses, by names that modules may have.

    Raises:
        ValueError: If it is no dict, or a name is empty, has a dot, or is that of an attribute of modules.
    """
    if not isinstance(losses, Mapping):
        raise ValueError(f"distill_losses expects losses by names of your own, dict(kd=dict(type=...)), but got {losses!r}.")
    for name in losses:
        if not name or '.' in name or hasattr(nn.ModuleDict(), name):
            raise ValueError(
                f'distill_losses expects losses by names of your own, without dots and such as no module of torch has, but got '
                f'{name!r}: rename it.'
            )


def check_names(student: Collection[str], method: Collection[str], added: Collection[str]) -> None:
    """Verify that no loss is logged under the name of another, which it would replace.

    Args:
        student (Collection[str]): Names of what the student returns.
        method (Collection[str]): Names of what the distiller's method returns.
        added (Collection[str]): Names of what its ``distill_losses`` return.

    Raises:
        ValueError: If a name occurs twice.
    """
    for name in added:
        if name in student or name in method:
            raise ValueError(
                f'distill_losses.{name.removeprefix("loss_")} would be logged as {name!r}, but '
                f'{"the student" if name in student else "the method"} returns a loss of that name already: rename it in '
                'distill_losses.'
            )
    shared = sorted(set(student) & set(method))
    if shared:
        raise ValueError(f'The student and the distiller both return {shared}; rename those of the student.')


def check_parameter_groups(optim_wrapper: Any) -> None:
    """Verify that learning rates which decay from layer to layer were given to the student by its own names.

    Raises:
        ValueError: If a constructor of mmdet or mmseg, which look for names that begin with 'backbone.', saw the distiller. It
            is not noticed where a wrapper for several processes steps instead of the distiller.
    """
    for group in optim_wrapper.param_groups if isinstance(optim_wrapper, OptimWrapper) else ():
        is_decayed = {'lr_scale', 'group_name'} <= set(group)  # as these constructors mark their groups
        if is_decayed and any(name.startswith(STUDENT_PREFIX) for name in group.get('param_names') or ()):
            raise ValueError(
                "The constructor of the optimizer is expected to see the student's own parameters, 'backbone...', but it saw "
                f"{group['param_names'][0]!r}, and every layer has the learning rate of the last. Train by dskd_mm's own "
                "tools/train.py, or set optim_wrapper.constructor='dskd_mm.StudentOptimWrapperConstructor' and "
                "optim_wrapper.paramwise_cfg.constructor to the one that is there now."
            )


def split_layers(
    layers: dict[str, dict], student: nn.Module, teacher: FrozenTeacher
) -> tuple[dict[str, Layer], dict[str, Layer]]:
    """Return the student's and the teacher's side of the argument ``layers``, with channels where they are not given.

    Raises:
        ValueError: If an entry is no pair of 'student' and 'teacher', each with a path, or has a name that has a meaning
            already, or channels cannot be found.
    """
    for name, pair in layers.items():
        if name in ('feature', 'logits'):
            raise ValueError(f"The name {name!r} of layers has a meaning already: the site's own. Choose another one.")
        if not isinstance(pair, Mapping) or set(pair) != {'student', 'teacher'}:
            raise ValueError(
                f'layers.{name} expects dict(student=dict(path=...), teacher=dict(path=...)), but '
                f'got {f"the keys {sorted(pair)}" if isinstance(pair, Mapping) else repr(pair)}.'
            )
        for owner, side in pair.items():
            if not isinstance(side, Mapping) or 'path' not in side:
                raise ValueError(f'layers.{name}.{owner} expects dict(path=...), but got {side!r}.')
            check_arguments(Layer, side, f'layers.{name}.{owner}')
    own = fill_channels({name: pair['student'] for name, pair in layers.items()}, lambda: student, 'student')
    theirs = fill_channels({name: pair['teacher'] for name, pair in layers.items()}, teacher.build_model, 'teacher')
    return {name: Layer(**layer) for name, layer in own.items()}, {name: Layer(**layer) for name, layer in theirs.items()}


def look_up(readable: Mapping[str, Readable], name: str, reader: str) -> Readable:
    """One of :attr:`Distiller.readable`.

    Args:
        readable (Mapping[str, Readable]): What may be read.
        name (str): Which of it.
        reader (str): What wants to read it, for the error.

    Raises:
        ValueError: If there is nothing of that name.
    """
    if name not in readable:
        raise ValueError(
            f'{reader} reads {name!r}, but there is only {", ".join(map(repr, readable))}. Name further modules in the '
            'argument layers.'
        )
    return readable[name]


def loss_class(config: dict) -> type[LogitLoss] | type[FeatureLoss] | type[BoxLoss] | None:
    """The class of a loss that compares student and teacher, by its config; None if it is another thing."""
    kind = config.get('type') if isinstance(config, dict) else None
    cls = MODELS.get(kind) if isinstance(kind, str) else kind
    return cls if isinstance(cls, type) and issubclass(cls, (LogitLoss, FeatureLoss, BoxLoss)) else None


def build_loss(
    name: str, config: dict, student: Port, teacher: Port, readable: Mapping[str, Readable]
) -> LogitLoss | FeatureLoss | BoxLoss:
    """Build a loss that compares student and teacher.

    Args:
        name (str): The argument that it is given by, such as 'distill_losses.kd', for messages.
        config (dict): Its config; channels are filled in.
        student (Port): Where the student is tapped.
        teacher (Port): Where the teacher is tapped.
        readable (Mapping[str, Readable]): What it may read of both.

    Raises:
        TypeError: If it is no loss that compares two models.
        ValueError: If it reads what the site does not offer, or what it is not defined for.
    """
    cls = loss_class(config)
    if cls is not None:
        check_arguments(cls, config, name)
        # Found already, with or without the prefix of this package: the default scope is the host's.
        config = {**config, 'type': cls}
    if cls is not None and issubclass(cls, LogitLoss):
        if not teacher.classifiers:
            raise ValueError(f'{name} ({cls.__name__}) reads class logits, but this site has no linear classifier.')
        logit_loss: LogitLoss = MODELS.build(config)
        logit_loss.check(teacher.num_classes, teacher.sigmoid)
        return logit_loss
    if cls is not None and issubclass(cls, BoxLoss):
        if not student.boxes or student.boxes != teacher.boxes:
            raise ValueError(
                f'{name} ({cls.__name__}) compares boxes of one encoding, but the student of this site has '
                f'{student.boxes or "none"}, the teacher {teacher.boxes or "none"}: it is for detectors of one family.'
            )
        return MODELS.build(config)
    if cls is not None and issubclass(cls, FeatureLoss):
        read = look_up(readable, config.get('on', 'feature'), f'{name} ({cls.__name__})')
        channels = dict(student_channels=read.student_channels, teacher_channels=read.teacher_channels)
        feature_loss: FeatureLoss = MODELS.build({**(channels if issubclass(cls, AlignedFeatureLoss) else {}), **config})
        feature_loss.check(read.is_map)
        return feature_loss
    known = [name for name in MODELS.module_dict if loss_class(dict(type=name)) is not None]
    raise TypeError(
        f'{name} expects the config of a LogitLoss, FeatureLoss or BoxLoss of dskd_mm ({", ".join(sorted(known))}), '
        f'type=\'dskd_mm.KDLoss\', but got {config}.'
    )


def build_student(config: dict | nn.Module, data_preprocessor: dict | nn.Module | None) -> BaseModel:
    """Build the student under the host's scope.

    Raises:
        TypeError: If it is no model of mmengine, or itself a distiller.
    """
    student: Any = config
    if isinstance(config, dict):
        if 'type' not in config:
            raise TypeError(
                'student expects the config of a model, dict(type=...), or student=_base_.model, but got one with the keys '
                f'{sorted(config)}.'
            )
        # Hosts write into the configs of what they build, and the teacher may have the same one.
        cfg = ConfigDict(copy.deepcopy(config))
        if cfg.get('data_preprocessor') is None:
            cfg.data_preprocessor = data_preprocessor
        student = MMENGINE_MODELS.build(cfg)
    if isinstance(student, Distiller) or not isinstance(student, BaseModel):
        raise TypeError(
            f'The student is expected to be a plain model of a host library, but got a {type(student).__name__}. Take the '
            "config of the plain student as _base_, or the distiller's student: student=_base_.model.student."
        )
    return student


def main_classes(probability: Tensor) -> Tensor:
    """Which classes an annotation names above all.

    Args:
        probability (Tensor): A distribution over classes, (B, K, ...).

    Returns:
        Tensor: Of the same shape, bool: the main class of mixed images, all of several labels, none where there is none.
    """
    return (probability > 0) & (probability == probability.amax(dim=1, keepdim=True))


def read_weights(owner: str, defaults: Mapping[str, float], given: Mapping[str, float] | None) -> dict[str, float]:
    """The weights of a method's losses.

    Args:
        owner (str): Whose they are, for the error.
        defaults (Mapping[str, float]): All losses by name, with the weights of those that are not given.
        given (Mapping[str, float], optional): What the config says.

    Raises:
        ValueError: If a loss of another name is given, or a negative weight.
    """
    weights = {**defaults, **(given or {})}
    are_numbers = all(isinstance(weight, (int, float)) for weight in weights.values())
    if set(weights) != set(defaults) or not are_numbers or min(weights.values()) < 0:
        raise ValueError(
            f'loss_weights of {owner} expects weights of {sorted(defaults)} that are not negative, but got {dict(given or {})}.'
        )
    return weights


def check_ports(student: Port, teacher: Port) -> None:
    """Verify that a teacher's classifier can judge what the student's predicts.

    Raises:
        ValueError: If their classes, anchors or levels differ.
    """
    if student.num_classes != teacher.num_classes:
        raise ValueError(
            f'The student classifies {student.num_classes} classes ({", ".join(student.classifiers)}), the teacher '
            f'{teacher.num_classes} ({", ".join(teacher.classifiers)}): both must know the same classes.'
        )
    if (student.anchors, student.strides) != (teacher.anchors, teacher.strides):
        raise ValueError(
            f'The student makes {student.anchors} predictions at each location of levels of the strides {student.strides}, the '
            f'teacher {teacher.anchors} at {teacher.strides}: their predictions do not correspond. Give both the same anchors '
            "and strides, or distil at the neck with site=dict(type='dskd_mm.NeckSite')."
        )
    if teacher.sigmoid != student.sigmoid:
        print_log(
            'The student and the teacher disagree on whether classes are independent (sigmoid) or exclusive (softmax); '
            f"the teacher's classifier is used as {'sigmoid' if teacher.sigmoid else 'softmax'}.",
            logger='current',
            level=logging.WARNING,
        )


def match_levels(maps: Sequence[Tensor], like: Sequence[Tensor]) -> list[Tensor]:
    """Resize a teacher's maps, in float32, to the heights and widths of the student's, level by level.

    Raises:
        ValueError: If they have not as many levels.
    """
    if len(maps) != len(like):
        raise ValueError(
            f'The teacher has {len(maps)} levels, the student {len(like)}: they must have the same number. Choose a pair of '
            'the same number of levels, or other taps in the site.'
        )
    return [
        level.float() if level.ndim == 2 else match_space(level.float(), other.shape[2:])
        for level, other in zip(maps, like, strict=True)
    ]


def build_teacher(config: dict) -> FrozenTeacher:
    """Build the teacher's holder from ``dict(config=..., checkpoint=...)``.

    Raises:
        TypeError: If it is of another kind.
    """
    if isinstance(config, FrozenTeacher):
        return config
    if not isinstance(config, dict) or not {'config', 'checkpoint'} <= set(config):
        got = f'a dict with only {sorted(config)}' if isinstance(config, dict) else repr(config)
        raise TypeError(f"teacher expects dict(config=..., checkpoint=...), the teacher's config and weights, but got {got}.")
    check_arguments(FrozenTeacher, config, 'teacher')
    return FrozenTeacher(**config)


def check_pooling(feature: Tensor, logits: Tensor, classifier: Any) -> None:
    """Verify that a classifier's logits follow from the average of a tapped map.

    Raises:
        ValueError: If they do not: the tap is not what the classifier sees.
    """
    with torch.no_grad():
        if not bool(logits.isfinite().all()):
            return  # nothing can be told, and another fault is to be reported
        # Not by calling the layer: it is tapped.
        expected = F.linear(feature.mean(dim=(2, 3)).float(), classifier.weight.float(), classifier.bias)
        if not torch.allclose(expected.float(), logits.float(), rtol=0.05, atol=0.05 * float(logits.abs().max()) + 1e-3):
            raise ValueError(
                "The input of the student's pooling does not lead to its logits: a layer between pooling and classifier "
                "changes it. Tap the classifier's own input with site=dict(feature=dict(path='head.<classifier>', io='input', "
                'channels=...)).'
            )


def build(cls: type[nn.Module], config: dict | None, **kwargs: Any) -> Any:
    """Build a part from its arguments; a ``type`` in them replaces the class."""
    config = {**kwargs, **(config or {})}
    if 'type' in config:
        return MODELS.build(config)
    check_arguments(cls, config)
    return cls(**config)
