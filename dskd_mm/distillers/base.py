"""What every distiller shares: a student that stays a plain model, and a teacher outside of it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import torch
from mmengine.dist import get_rank
from mmengine.logging import MessageHub
from mmengine.model import BaseModel
from torch import Tensor, nn

from dskd_mm.compiled import compiled_networks, networks_alone
from dskd_mm.distillers.batch import BatchOutputs, HeadLoss
from dskd_mm.distillers.checks import (
    check_loss_names,
    check_names,
    check_parameter_groups,
    check_pooling,
    check_specs,
    explain_single_vector,
    named_losses,
)
from dskd_mm.distillers.ensemble import average_predictions, build_teachers, check_method, check_others
from dskd_mm.distillers.foreground import ForegroundCount
from dskd_mm.distillers.layers import split_layers
from dskd_mm.distillers.options import MethodOptions
from dskd_mm.distillers.student import accept_checkpoint, build_student, keep_names, refuse_bare_network
from dskd_mm.features import match_levels
from dskd_mm.features.norm import SingleVectorError
from dskd_mm.losses import build_losses
from dskd_mm.sites import SITES_BY_MODEL, Site, build_site, naming_the_neck
from dskd_mm.structures import ModelOutputs, TapRecord, TapSpec
from dskd_mm.teacher import FrozenTeacher
from dskd_mm.utils.checkpoint import STUDENT_PREFIX


class Distiller(BaseModel):
    """Base of all distillers.

    ``predict`` and ``tensor`` are the student's own, untouched; only ``loss`` adds anything. The state dict is that of the
    student under ``student.`` plus the trainable modules of the distiller; the teacher is in none of it. A plain student's
    checkpoint loads as well.

    A method has a class of options (:attr:`options_class`), builds its modules in ``__init__`` and implements :meth:`distill`.
    Whatever the method, ``distill_losses`` are added to its own, so methods combine: DSKD and DIST, VkD and logits.

    Args:
        student (dict | nn.Module): The student: a host's model.
        teacher (dict | list[dict]): Arguments of :class:`~dskd_mm.teacher.FrozenTeacher`: config and checkpoint. Of several
            the class probabilities are averaged, and the first is the teacher in all else.
        site (dict, optional): Arguments of the task's site, see :mod:`dskd_mm.sites`. Chosen by the student's type by default.
        layers (dict[str, dict], optional): Further modules that losses may read, by a name of your own:
            ``dict(student=dict(path=...), teacher=dict(path=...))`` each, the arguments of :class:`~dskd_mm.structures.Layer`.
            Channels that are not given are found by a pass on the meta device. Defaults to None.
        distill_losses (dict[str, dict], optional): Losses to add, configs of :class:`~dskd_mm.losses.DistillLoss` by a name of
            your own; they are logged as ``loss_<name>``. Defaults to None.
        noise_seed (int, optional): Seed of all noise. None takes that of the run. Defaults to None.
        data_preprocessor (dict, optional): Given to the student if it has none of its own: the runner passes it here.
            Defaults to None.
        options: The method's own, fields of :attr:`options_class`.

    Raises:
        TypeError: If student or teacher are of a wrong kind, or an argument is not known.
        ValueError: If their classifiers cannot be found or do not fit each other, a loss reads what is not there, or an option
            is out of its range.
    """

    options_class: ClassVar[type[MethodOptions]] = MethodOptions
    """The options of the method, with its defaults for each task."""
    default_sites: ClassVar[Mapping[str, str]] = SITES_BY_MODEL
    """The site by the student's class, where none is given."""
    compares_with_teacher: ClassVar[bool] = False
    """Whether the method itself always needs what the teacher makes of the images."""
    learned_losses: ClassVar[tuple[str, ...]] = ()
    """How the names of losses end by which the method's own modules learn: these are not weighed."""
    renamed_keys: Mapping[str, str] = {}
    """Prefixes of keys in older checkpoints, and what they are now."""
    options: Any
    iteration: Tensor
    noise_seed: Tensor
    magnitudes: dict[str, Tensor] | None = None
    """The largest absolute value of all that steps see, by what it is called: images, taps, losses. Whoever wants them puts an
    empty dict here and empties it again, as :class:`~dskd_mm.hooks.CheckFiniteHook` does; with None nobody does."""

    def __new__(cls, student: Any = None, *args: Any, **kwargs: Any) -> 'Distiller':
        """Refuse a bare network before arguments are counted: it often comes without a teacher."""
        refuse_bare_network(student)
        return super().__new__(cls)

    def __init__(
        self,
        student: dict | nn.Module,
        teacher: dict | list[dict],
        site: dict | Site | None = None,
        layers: dict[str, dict] | None = None,
        distill_losses: dict[str, dict] | None = None,
        noise_seed: int | None = None,
        data_preprocessor: dict | nn.Module | None = None,
        **options: Any,
    ) -> None:
        model = build_student(student, data_preprocessor)
        super().__init__(data_preprocessor=model.data_preprocessor)
        self._random_state = torch.get_rng_state()
        self.student = model
        self.teacher, *others = build_teachers(teacher)
        self.site = build_site(site, model, self.default_sites)
        own, theirs = split_layers(layers or {}, model, self.teacher)
        with naming_the_neck(self.site, model, [self.teacher]):
            self.student_spec = replace(self.site.student_spec(model), layers=own)
            # The head alone tells the shapes: nothing of the teacher is loaded before the first training step.
            spec = replace(self.site.teacher_spec(None, self.teacher), layers=theirs)
        self.teacher_spec = self.teacher.as_student(spec, self.student_spec)
        check_specs(self.student_spec, self.teacher_spec)
        self.other_teachers = [
            (other, other.as_student(self.site.teacher_spec(None, other), self.student_spec)) for other in others
        ]
        check_others(self.student_spec, self.teacher_spec, self.other_teachers)
        self.options = self.options_class.resolve(type(self), options, self.site, self.student_spec, self.teacher_spec)
        check_loss_names(distill_losses or {})
        self.distill_losses: Any = build_losses('distill_losses', distill_losses or {}, self.student_spec, self.teacher_spec)
        check_method(self)
        self.foreground = ForegroundCount() if self.site.counts_objects else nn.Identity()
        seed = torch.initial_seed() if noise_seed is None else noise_seed
        self.register_buffer('noise_seed', torch.tensor(seed % 2**62))
        self.register_buffer('iteration', torch.zeros((), dtype=torch.long))
        # The buffers are what checkpoints keep; these copies save a read from the device in every step.
        self._clock: tuple[int, int] | None = None
        self._seed_before_loading: int | None = None
        self._is_first_step = True
        self._is_ready = False
        self._student_losses: tuple[str, ...] = ()
        self._register_load_state_dict_pre_hook(self._accept_checkpoint)
        self._register_state_dict_hook(keep_names)

    def init_weights(self) -> None:
        """Draw the student's first weights as without a distiller: of one seed, all methods begin with the same student."""
        torch.set_rng_state(self._random_state)  # modules of the method have drawn their own weights since
        super().init_weights()

    @property
    def teachers(self) -> list[FrozenTeacher]:
        """All teachers, the one that guides first."""
        return [self.teacher, *(other for other, _ in self.other_teachers)]

    @property
    def uses_teacher_forward(self) -> bool:
        """Return whether training runs the whole teacher; otherwise only its classifier's weights are loaded."""
        return self.compares_with_teacher or len(self.distill_losses) > 0

    def distill(self, student: ModelOutputs, teacher: Any, target: Any, head_loss: HeadLoss) -> dict[str, Tensor]:
        """Return the method's own losses, under keys that begin with ``loss_``, and health figures under keys without 'loss'.

        The arguments are fields of :class:`BatchOutputs`.
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

    @networks_alone
    def loss(self, inputs: Tensor, data_samples: list) -> dict[str, Tensor]:
        """Return the losses of one training step; see :meth:`forward`."""
        if self._is_first_step:
            self._begin_anew()
        batch = self.run_models(inputs, data_samples)
        try:
            own = self.distill(batch.student, batch.teacher, batch.target, batch.head_loss)
            added = self._compare(batch)
        except SingleVectorError as error:
            raise ValueError(explain_single_vector(self)) from error
        check_names(batch.losses, own, added)
        taught = self.options.weigh(own, self.iteration, self.learned_losses) | self.options.weigh(added, self.iteration)
        self._is_first_step = False
        self._student_losses = tuple(batch.losses)
        if self.training:  # the loss of a validation is no step
            self._tick()
        found = {**batch.losses, **taught}
        self._note(named_losses(found))
        return found

    def parse_losses(self, losses: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the total, and what is logged: the total as ``loss``, the sum of the student's own as ``loss_student``.

        A classifier's head calls its loss ``loss``, too: mmengine would log it in place of the total.
        """
        total, log = super().parse_losses(losses)
        own, _ = super().parse_losses({name: losses[name] for name in self._student_losses if name in losses})
        return total, {'loss': total, 'loss_student': own} | log | {'loss': total}

    def run_models(self, inputs: Tensor, data_samples: list, with_teacher: bool = False) -> BatchOutputs:
        """Run the student in mode 'loss' and, where a term needs it, the teacher, and record what they made of the batch.

        Args:
            inputs (Tensor): Preprocessed images of shape (B, C, H, W).
            data_samples (list): Their annotations.
            with_teacher (bool): Whether the teacher, which must be loaded whole then, runs in any case. Defaults to False.

        Raises:
            ValueError: If there is no image, an annotation is missing or wrong, or a tap has another shape than expected.
        """
        if not self._is_ready:
            self.load_teacher()
        if inputs.ndim != 4 or not inputs.numel() or len(inputs) != len(data_samples):
            raise ValueError(
                "Mode 'loss' expects images (B, C, H, W) of at least one pixel and an annotation for each, but got images of "
                f'the shape {tuple(inputs.shape)} and {len(data_samples)} annotations. Check the pipeline and its crops.'
            )
        spec, teacher_spec = self.student_spec, self.teacher_spec
        self.site.check(data_samples, spec)
        with (
            naming_the_neck(self.site, self.student, self.teachers),
            compiled_networks(self.student),
            TapRecord(self.student, spec, 'student') as record,
        ):
            self._note([('images', inputs)])
            losses = self.student(inputs, data_samples, mode='loss')
            features = record.features
            self._note(record.captured)
            if self._is_first_step and spec.is_pooled:
                (path,) = spec.classifiers
                check_pooling(features[0], record.logits[0], self.student.get_submodule(path))
            student = ModelOutputs(features, record.logits, record.boxes, record.layers, spec.num_priors)
            target = self.foreground(self.site.target(record, data_samples, teacher_spec.num_classes, teacher_spec.sigmoid))
            teacher = self.run_teacher(inputs, data_samples, record) if with_teacher or self.uses_teacher_forward else None

        def head_loss(maps: Sequence[Tensor]) -> Tensor:
            with self.teacher.precision():
                return self.site.head_loss(self.teacher, maps, inputs, data_samples)

        return BatchOutputs(student, teacher, target, head_loss, losses)

    def get_layer_depth(self, param_name: str) -> tuple[int, int]:
        """Return how deep a parameter lies in the student, for mmpretrain's ``LearningRateDecayOptimWrapperConstructor``.

        Args:
            param_name (str): The parameter's name in the distiller.

        Returns:
            tuple[int, int]: The index of its layer and the number of layers; the distiller's own belong to the last.
        """
        return self.student.get_layer_depth(param_name.removeprefix(STUDENT_PREFIX))

    @networks_alone
    def train_step(self, data: Any, optim_wrapper: Any) -> dict[str, Tensor]:
        """Take one step of mmengine's runner."""
        if self._is_first_step:
            check_parameter_groups(optim_wrapper)
        return super().train_step(data, optim_wrapper)

    def val_step(self, data: Any) -> list:
        """Return the student's own predictions."""
        return self.student.val_step(data)

    def test_step(self, data: Any) -> list:
        """Return the student's own predictions."""
        return self.student.test_step(data)

    def load_teacher(self) -> None:
        """Build and load the teacher, or its classifier alone, where the student is."""
        device = next(self.student.parameters()).device
        # Without a linear classifier it is the teacher's whole head that guides.
        full = self.uses_teacher_forward or not self.teacher_spec.classifiers
        # A copy of this distiller (EMA's) has the same teacher, and finds it loaded.
        if not self.teacher.is_loaded:
            self.teacher.load(self.teacher_spec, device, full, self.data_preprocessor)
        for other, own in self.other_teachers:
            if not other.is_loaded:
                other.load(own, device, True, self.data_preprocessor)
        self.other_teachers = [(other, other.as_student(own, self.student_spec)) for other, own in self.other_teachers]
        self._is_ready = True
        if self.teacher.model is not None:
            spec = replace(self.site.teacher_spec(self.teacher.model, self.teacher), layers=self.teacher_spec.layers)
            self.teacher_spec = self.teacher.as_student(spec, self.student_spec)

    def noise_generator(self, device: torch.device, *key: int) -> torch.Generator:
        """Return a generator that follows from seed, rank and iteration alone.

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

    def _begin_anew(self) -> None:
        """Forget the iteration and the seed of another run, whose weights this one begins with (``load_from``)."""
        # mmengine loads weights in one way, resuming or not, but a run that begins is told by its own counter.
        info = MessageHub.get_current_instance().runtime_info
        self.options.warn_of_warmup(info.get('max_iters'))
        if info.get('iter') == 0 and self._seed_before_loading is not None:
            self.noise_seed.fill_(self._seed_before_loading)
            self.iteration.zero_()
            self._clock = None

    def _tick(self) -> None:
        self.iteration += 1
        if self._clock is not None:
            self._clock = self._clock[0], self._clock[1] + 1

    def run_teacher(self, inputs: Tensor, data_samples: list, student: TapRecord) -> ModelOutputs:
        """Return what the teachers make of a batch, resized to the student's resolutions level by level.

        Args:
            inputs (Tensor): Images (B, C, H, W), normalised for the student.
            data_samples (list): Their annotations.
            student (TapRecord): The student's open taps.
        """
        teachers = [(self.teacher, self.teacher_spec), *self.other_teachers]
        outputs = [self._run_one(teacher, spec, inputs, data_samples, student) for teacher, spec in teachers]
        return average_predictions(outputs, [teacher.weight for teacher, _ in teachers], self.teacher_spec.sigmoid)

    def _run_one(
        self, teacher: FrozenTeacher, spec: TapSpec, inputs: Tensor, data_samples: list, student: TapRecord
    ) -> ModelOutputs:
        model = teacher.require_model()
        with torch.no_grad(), teacher.precision(), compiled_networks(model), TapRecord(model, spec, 'teacher') as record:
            self.site.run_teacher(teacher, spec, inputs, data_samples, student)
            self._note(record.captured)
            return ModelOutputs(
                # In the space of one classifier for each level, a level is its own.
                match_levels(record.features, student.features, by_size=len(spec.classifiers) < 2),
                match_levels(record.logits, student.logits),
                match_levels(record.boxes, student.boxes if spec.boxes else []),
                {name: [level.float() for level in maps] for name, maps in record.layers.items()},
                spec.num_priors,
            )

    def _compare(self, batch: BatchOutputs) -> dict[str, Tensor]:
        """Return the ``distill_losses`` of a batch."""
        if batch.teacher is None or not len(self.distill_losses):
            return {}
        generator = self.noise_generator(batch.student.features[0].device, 1)  # 1: not the noise of the method itself
        return {
            f'loss_{name}': loss.compare_outputs(batch.student, batch.teacher, batch.target, generator)
            for name, loss in self.distill_losses.items()
        }

    def _note(self, named: Iterable[tuple[str, Tensor]]) -> None:
        """Add to :attr:`magnitudes`, without a read from the device."""
        if self.magnitudes is None:
            return
        for name, value in named:
            if value.numel() and value.is_floating_point():
                # Of all norms this one cannot overflow, reads the tensor once, and keeps what is not a number.
                largest = torch.linalg.vector_norm(value.detach(), float('inf'), dtype=torch.float32)
                self.magnitudes[name] = torch.maximum(self.magnitudes.get(name, largest), largest)

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
        for teacher in self.teachers:
            teacher.apply_to_tensors(fn)
        return self

    def _accept_checkpoint(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        self._clock = None
        if self._is_first_step and self._seed_before_loading is None:
            self._seed_before_loading = int(self.noise_seed)
        accept_checkpoint(self.student, state_dict, prefix, self.renamed_keys)
