"""What every distiller shares: a student that stays a plain model, and a teacher outside of it."""

import logging
from abc import abstractmethod
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from mmengine.config import ConfigDict
from mmengine.dist import get_rank
from mmengine.logging import print_log
from mmengine.model import BaseModel
from mmengine.registry import MODELS as MMENGINE_MODELS
from torch import Tensor, nn
from torch.nn import functional as F

from dskd_mm.features import FeatureTap, find_module
from dskd_mm.sites import Port, Site, build_site
from dskd_mm.teacher import FrozenTeacher
from dskd_mm.utils.checkpoint import STUDENT_PREFIX


class Distiller(BaseModel):
    """Base of all distillers.

    ``predict`` and ``tensor`` are the student's own, untouched; only ``loss`` adds anything. The state dict is that of the
    student under ``student.`` plus the trainable modules of the distiller; the teacher is in none of it. A plain student's
    checkpoint loads as well.

    Subclasses build their modules in ``__init__`` and implement :meth:`distill`.

    Args:
        student (dict | nn.Module): The student: a host's model.
        teacher (dict): Arguments of :class:`~dskd_mm.teacher.FrozenTeacher`: config and checkpoint.
        site (dict, optional): Arguments of the task's site, see :mod:`dskd_mm.sites`. Chosen by the student's type by default.
        noise_seed (int, optional): Seed of all noise. None takes that of the run. Defaults to None.
        data_preprocessor (dict, optional): Given to the student if it has none of its own: the runner passes it here.
            Defaults to None.

    Raises:
        TypeError: If student or teacher are of a wrong kind.
        ValueError: If their classifiers cannot be found or do not fit each other.
    """

    iteration: Tensor
    noise_seed: Tensor

    def __init__(
        self,
        student: dict | nn.Module,
        teacher: dict,
        site: dict | Site | None = None,
        noise_seed: int | None = None,
        data_preprocessor: dict | nn.Module | None = None,
    ) -> None:
        model = build_student(student, data_preprocessor)
        super().__init__(data_preprocessor=model.data_preprocessor)
        self.student = model
        self.teacher = build_teacher(teacher)
        self.site = build_site(site, model)
        self.student_port = self.site.student_port(model)
        # The head alone tells the shapes: nothing of the teacher is loaded before the first training step.
        head = self.teacher.build_part(self.site.part)
        self.teacher_port = self.site.teacher_port(None, head)
        self.num_classes: int = classes_of(head, self.teacher_port.classifier.removeprefix(f'{self.site.part}.'))
        own_classes = classes_of(model, self.student_port.classifier)
        if own_classes != self.num_classes:
            raise ValueError(
                f'The student classifies {own_classes} classes ({self.student_port.classifier}), the teacher '
                f'{self.num_classes} ({self.teacher_port.classifier}): both must know the same classes.'
            )
        if self.teacher_port.sigmoid != self.student_port.sigmoid:
            print_log(
                'The student and the teacher disagree on whether classes are independent (sigmoid) or exclusive (softmax); '
                f"the teacher's classifier is used as {'sigmoid' if self.teacher_port.sigmoid else 'softmax'}.",
                logger='current',
                level=logging.WARNING,
            )
        seed = torch.initial_seed() if noise_seed is None else noise_seed
        self.register_buffer('noise_seed', torch.tensor(seed % 2**62))
        self.register_buffer('iteration', torch.zeros((), dtype=torch.long))
        # The buffers are what checkpoints keep; these copies save a read from the device in every step.
        self._clock: tuple[int, int] | None = None
        self._is_first_step = True
        self._register_load_state_dict_pre_hook(self._accept_student_checkpoint)

    @property
    @abstractmethod
    def uses_teacher_forward(self) -> bool:
        """Whether training runs the whole teacher; otherwise only its classifier's weights are loaded."""

    @abstractmethod
    def distill(
        self, feature: Tensor, logits: Tensor, data_samples: list, teacher_feature: Tensor | None, teacher_logits: Tensor | None
    ) -> dict[str, Tensor]:
        """The distillation losses, under keys that begin with ``loss_``, and health figures under keys without 'loss'.

        Args:
            feature (Tensor): The student's feature (B, C_s, H, W), in the graph; vectors come with H = W = 1.
            logits (Tensor): What the student's classifier made of it, in the graph.
            data_samples (list): Annotations of the batch.
            teacher_feature (Tensor, optional): The teacher's feature (B, C_t, H', W'), if the teacher runs.
            teacher_logits (Tensor, optional): The teacher's logits, if the teacher runs.
        """

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
        if not self.teacher.is_loaded:
            self.load_teacher()
        self.site.check(data_samples, self.num_classes)
        with ExitStack() as taps:
            feature_tap, logits_tap = self._open_taps(taps, self.student, self.student_port, 'student')
            losses = self.student(inputs, data_samples, mode='loss')
            feature = self._read(feature_tap, self.student_port)
            if self._is_first_step and self.student_port.is_pooled:
                check_pooling(feature, logits_tap.value, self.student.get_submodule(self.student_port.classifier))
            teacher_feature, teacher_logits = self._run_teacher(inputs, data_samples)
            own = self.distill(feature, logits_tap.value, data_samples, teacher_feature, teacher_logits)
        shared = set(losses) & set(own)
        if shared:
            raise ValueError(f'The student and the distiller both return {sorted(shared)}; rename those of the student.')
        self._is_first_step = False
        self._tick()
        return {**losses, **own}

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
        self.teacher.load(port.classifier, port.sigmoid, device, self.uses_teacher_forward, self.data_preprocessor)
        if self.teacher.model is not None:
            self.teacher_port = self.site.teacher_port(self.teacher.model, self.teacher.model.get_submodule(self.site.part))

    def noise_generator(self, device: torch.device) -> torch.Generator:
        """A generator that follows from seed, rank and iteration alone.

        A resumed run thereby continues the same sequence, and ranks draw different noise, whatever the seed of the run.
        """
        if self._clock is None:
            self._clock = int(self.noise_seed), int(self.iteration)
        entropy = np.random.SeedSequence([*self._clock, get_rank()]).generate_state(1, np.uint64)[0]
        return torch.Generator(device).manual_seed(int(entropy >> np.uint64(1)))

    def _tick(self) -> None:
        self.iteration += 1
        if self._clock is not None:
            self._clock = self._clock[0], self._clock[1] + 1

    @staticmethod
    def _open_taps(stack: ExitStack, model: nn.Module, port: Port, owner: str) -> tuple[FeatureTap, FeatureTap]:
        feature = FeatureTap(model, port.feature, port.io, port.index, owner)
        logits = FeatureTap(model, port.classifier, 'output', None, owner)
        return stack.enter_context(feature), stack.enter_context(logits)

    def _run_teacher(self, inputs: Tensor, data_samples: list) -> tuple[Tensor | None, Tensor | None]:
        if self.teacher.model is None:
            return None, None
        with torch.no_grad(), ExitStack() as taps:
            feature_tap, logits_tap = self._open_taps(taps, self.teacher.model, self.teacher_port, 'teacher')
            self.teacher(inputs, data_samples)
            return self._read(feature_tap, self.teacher_port), logits_tap.value.float()

    def _read(self, tap: FeatureTap, port: Port) -> Tensor:
        feature = tap.value
        if feature.ndim == 2:
            feature = feature[:, :, None, None]
        if feature.ndim != 4 or feature.shape[1] != port.channels:
            raise ValueError(
                f'The {tap!r} is expected to be of shape (B, {port.channels}, H, W) or (B, {port.channels}), but got '
                f'{tuple(tap.value.shape)}. Tap another module, or correct its channels.'
            )
        # On an accelerator the check would make every step wait for the device.
        if feature.device.type == 'cpu' and not bool(torch.isfinite(feature).all()):
            count = int((~torch.isfinite(feature)).sum())
            raise FloatingPointError(
                f'The {tap!r} is expected to be finite, but {count} of its {feature.numel()} values are NaN or infinite at '
                f'iteration {int(self.iteration)}. Check the images, lower the learning rate or clip gradients; the last '
                'checkpoint is unharmed.'
            )
        return feature

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


def build_student(config: dict | nn.Module, data_preprocessor: dict | nn.Module | None) -> BaseModel:
    """Build the student under the host's scope.

    Raises:
        TypeError: If it is no model of mmengine, or itself a distiller.
    """
    student: Any = config
    if isinstance(config, dict):
        cfg = ConfigDict(config)
        if cfg.get('data_preprocessor') is None:
            cfg.data_preprocessor = data_preprocessor
        student = MMENGINE_MODELS.build(cfg)
    if isinstance(student, Distiller) or not isinstance(student, BaseModel):
        raise TypeError(
            f'The student is expected to be a plain model of a host library, but got a {type(student).__name__}. Take the '
            "config of the plain student as _base_, or the distiller's student: student=_base_.model.student."
        )
    return student


def classes_of(model: nn.Module, path: str) -> int:
    """Number of classes of the classification layer at a path."""
    layer: Any = find_module(model, path)
    return int(layer.weight.shape[0])


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
    return FrozenTeacher(**config)


def check_pooling(feature: Tensor, logits: Tensor, classifier: Any) -> None:
    """Verify that a classifier's logits follow from the average of a tapped map.

    Raises:
        ValueError: If they do not: the tap is not what the classifier sees.
    """
    with torch.no_grad():
        # Not by calling the layer: it is tapped.
        expected = F.linear(feature.mean(dim=(2, 3)).float(), classifier.weight.float(), classifier.bias)
        if not torch.allclose(expected.float(), logits.float(), rtol=0.05, atol=0.05 * float(logits.abs().max()) + 1e-3):
            raise ValueError(
                "The input of the student's pooling does not lead to its logits: a layer between pooling and classifier "
                "changes it. Tap the classifier's own input with site=dict(feature=dict(path='head.<classifier>', io='input', "
                'channels=...)).'
            )
