"""The frozen teacher: built late, loaded with care, and owned by no module tree."""

import copy
import logging
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from mmengine.config import ConfigDict
from mmengine.logging import print_log
from mmengine.registry import MODELS as MMENGINE_MODELS
from torch import Tensor, nn
from torch.nn import functional as F

from dskd_mm.arguments import check_arguments
from dskd_mm.features.tap import find_module
from dskd_mm.guidance import TeacherClassifier
from dskd_mm.input_adapter import InputAdapter
from dskd_mm.structures import TapSpec
from dskd_mm.utils.checkpoint import load_checkpoint_file, load_report, model_state
from dskd_mm.utils.classes import checkpoint_classes, class_indices, first_difference, training_classes
from dskd_mm.utils.config import load_config, model_config, student_config


class FrozenTeacher:
    """A teacher that trains never see: a plain object that holds a model, or only its classifier.

    It is no ``nn.Module``, so it is absent from ``parameters()``, ``state_dict()``, the optimizer, EMA, DDP, SyncBN conversion
    and ``init_weights`` of the distiller that holds it. Copies of the distiller share it. It is built at the first training
    step and never for testing.

    Args:
        config (str | dict): Config of the teacher: a path, ``package::path`` or a dict, with a ``model``. That of a distiller
            stands for its student (a teacher that was a student once).
        checkpoint (str): Its weights: a path or an address. Both an mmengine checkpoint and that of a distiller are read.
        strict (bool): Whether every tensor of the teacher must be in the checkpoint with its shape. With False, missing ones
            stay random, which is reported. Defaults to True.
        dtype (str, optional): 'bfloat16' or 'float16' to run the teacher in, whatever the student trains in: its convolutions
            and linear layers are kept in it and all runs under autocast. Its classifiers stay float32. Defaults to None: as
            the student.
        input_size (tuple[int, int] | float, optional): Height and width to which the student's images are resized for the
            teacher, or a factor (2.0) where images differ in size, as in detection. Its maps are resized to the student's
            resolutions afterwards. Defaults to None: it sees the student's images.
        match_classes (bool | Sequence[str]): Whether its classes are brought into the order of the training data, by the names
            in its checkpoint and in the data set; what it predicts for others is left out. A list names the classes of the
            data where the data set does not. Defaults to False: a difference is warned of.
        weight (float): How much its class probabilities count where there are several teachers. Defaults to 1.

    Raises:
        ValueError: If the config has no model, or an argument is out of its range.
    """

    def __init__(
        self,
        config: str | dict,
        checkpoint: str,
        strict: bool = True,
        dtype: str | None = None,
        input_size: Sequence[int] | float | None = None,
        match_classes: bool | Sequence[str] = False,
        weight: float = 1.0,
    ) -> None:
        if not isinstance(checkpoint, str):
            raise TypeError(
                "teacher=dict(config=..., checkpoint=...) expects the path or address of the teacher's weights as checkpoint, "
                f'but got {checkpoint!r}.'
            )
        self.config = model_config(student_config(load_config(config)))
        self.checkpoint = checkpoint
        if dtype not in (None, 'bfloat16', 'float16'):
            raise ValueError(f"dtype of a teacher must be 'bfloat16', 'float16' or None, but got {dtype!r}.")
        if not weight > 0:
            raise ValueError(f'weight of a teacher must be positive, but got {weight!r}.')
        self.strict = strict
        self.weight = float(weight)
        self.input_size = check_input_size(input_size)
        self.match_classes = match_classes
        self.classes: tuple[int, ...] = ()
        self.class_names: list[str] | None = None
        self.dtype: torch.dtype | None = None if dtype is None else getattr(torch, dtype)
        self.model: nn.Module | None = None
        self.classifiers: list[TeacherClassifier] = []
        self.input_adapter: InputAdapter | None = None

    @classmethod
    def from_config(cls, config: Any) -> 'FrozenTeacher':
        """Build a teacher from ``dict(config=..., checkpoint=...)``; a teacher is returned as it is.

        Raises:
            TypeError: If it is of another kind.
        """
        if isinstance(config, cls):
            return config
        if not isinstance(config, dict) or not {'config', 'checkpoint'} <= set(config):
            got = f'a dict with only {sorted(config)}' if isinstance(config, dict) else repr(config)
            raise TypeError(
                f"teacher expects dict(config=..., checkpoint=...), the teacher's config and weights, but got {got}."
            )
        check_arguments(cls, config, 'teacher')
        return cls(**config)

    def __deepcopy__(self, memo: dict[int, Any]) -> 'FrozenTeacher':
        return self

    @property
    def is_loaded(self) -> bool:
        """Return whether the weights are there."""
        return self.model is not None or bool(self.classifiers)

    def part_config(self, path: str) -> Any:
        """Return the config of one part.

        Args:
            path (str): Dotted path of a part with a config of its own, such as ``head`` or ``roi_head.bbox_head.2``.

        Raises:
            ValueError: If the teacher has no such part.
        """
        config: Any = self.config
        for name in filter(None, path.split('.')):
            known = range(len(config)) if isinstance(config, list) else config
            key: Any = int(name) if isinstance(config, list) else name
            if key not in known:
                at_the_neck = " One of another family can teach at the neck: site=dict(type='dskd_mm.NeckSite')."
                raise ValueError(
                    f'The teacher ({self.config.type}) has no {path!r} in its config, only {sorted(known)}: is it a model '
                    'for another task than the student, or a whole network of another library? Give that as the backbone '
                    f'of a model of the host.{at_the_neck if self.config.get("neck") else ""}'
                )
            config = config[key]
        return config

    def build_model(self) -> nn.Module:
        """Return the whole teacher with random weights, to read shapes off it."""
        return build_in_scope(self.config, None)

    def build_part(self, path: str) -> nn.Module:
        """Build one part of the teacher with random weights, to read shapes off it; see :meth:`part_config`.

        Returns:
            nn.Module: The part, on the CPU.
        """
        return build_in_scope(self.part_config(path), self.config.get('_scope_'))

    def load(self, spec: TapSpec, device: torch.device, full: bool, student_preprocessor: nn.Module) -> None:
        """Build what is needed and load its weights.

        Args:
            spec (TapSpec): Where the teacher is tapped: the part that holds the classification layers, and these.
            device (torch.device): Where to put it.
            full (bool): Whether the teacher will run; otherwise only its classification layers are kept and no backbone is
                ever built.
            student_preprocessor (nn.Module): The preprocessor whose inputs the teacher will get.

        Raises:
            FileNotFoundError: If the checkpoint is missing.
            ValueError: If it is damaged or does not fit.
        """
        checkpoint = load_checkpoint_file(self.checkpoint)
        state = model_state(checkpoint, self.checkpoint)
        prefix = ''
        if full or not spec.part:
            module = self.build_model()
        else:
            prefix = spec.part + '.'
            module = self.build_part(spec.part)
            state = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}
        report = load_report(module, state)
        print_log(f'Teacher {self.checkpoint}: {report}.', logger='current')
        if not report.matched or (self.strict and (report.missing or report.mismatched)):
            raise ValueError(
                f'The checkpoint {self.checkpoint!r} does not fit the teacher ({self.config.type}): {report}. Expected every '
                'tensor of the model with its shape. Check that config and checkpoint belong together (architecture, number '
                'of classes), or accept random weights for the rest with teacher=dict(..., strict=False).'
            )
        self.class_names = checkpoint_classes(checkpoint)
        self.hold(module, spec, device, full, student_preprocessor, prefix)

    def hold(
        self,
        module: nn.Module,
        spec: TapSpec,
        device: torch.device,
        full: bool,
        student_preprocessor: nn.Module,
        prefix: str = '',
    ) -> None:
        """Keep what is needed of a model that has its weights: all of it, or its classification layers.

        Args:
            module (nn.Module): The model, or the part of it whose path is the prefix.
            spec (TapSpec): Where it is tapped.
            device (torch.device): Where to put it.
            full (bool): Whether the teacher will run.
            student_preprocessor (nn.Module): The preprocessor whose inputs it will get.
            prefix (str): What paths of the spec begin with that the module's own do not. Defaults to ''.
        """
        layers = [find_module(module, path.removeprefix(prefix), 'teacher') for path in spec.classifiers]
        self.classifiers = [
            TeacherClassifier.from_layer(layer, spec.sigmoid, spec.num_priors, spec.is_dense).to(device) for layer in layers
        ]
        outputs = self.classifiers[0].num_classes if self.classifiers else 0
        self.classes = self._find_classes(outputs, spec.num_classes)
        if self.classes:
            chosen = torch.tensor(self.classes, device=device)
            self.classifiers = [classifier.select(chosen) for classifier in self.classifiers]
        if full:
            self.model = narrowed(module, self.dtype).to(device).eval().requires_grad_(False)
            self.input_adapter = InputAdapter(student_preprocessor, module.get_submodule('data_preprocessor')).to(device)

    def as_student(self, spec: TapSpec, student: TapSpec) -> TapSpec:
        """Return where the teacher is tapped as it is compared: with the student's classes, if they are matched.

        Args:
            spec (TapSpec): Where it is tapped.
            student (TapSpec): Where the student is tapped.

        Raises:
            ValueError: If classes are to be matched, but there is no linear classifier.
        """
        if not self.match_classes or spec.num_classes < student.num_classes:
            return spec
        if not spec.classifiers:
            raise ValueError(
                'match_classes of a teacher expects a linear classifier, but at this site its whole head reads the labels. '
                "Give the data the teacher's order of classes by metainfo=dict(classes=...)."
            )
        return replace(spec, num_classes=student.num_classes, num_labels=student.num_labels, classes=self.classes)

    def _find_classes(self, outputs: int, count: int) -> tuple[int, ...]:
        """Return which outputs are the student's classes, () for all as they are; warn of names that differ."""
        known = self.class_names
        names = list(self.match_classes) if isinstance(self.match_classes, Sequence) else training_classes()
        if not self.match_classes:
            difference = first_difference(known, names) if known and names else None
            if difference is not None:
                print_log(
                    f'The teacher {self.checkpoint} was trained on other classes, or in another order: {difference}. Unless '
                    'only the names differ it teaches wrong classes: set teacher=dict(..., match_classes=True).',
                    logger='current',
                    level=logging.WARNING,
                )
            return ()
        if known is None or names is None:
            raise ValueError(
                'match_classes of a teacher expects names of classes in its checkpoint (meta.dataset_meta.classes) and in the '
                f'training data (metainfo), but {"the checkpoint" if known is None else "the data"} has none. '
                + (
                    'Give the data the order of the teacher instead.'
                    if known is None
                    else 'Name them: match_classes=[...], in the order of the labels.'
                )
            )
        indices = class_indices(known, names, outputs)
        if len(indices) != count:
            raise ValueError(
                f'match_classes of a teacher expects a student of as many outputs as the data have classes, but got {count} '
                f'for {len(names)} classes ({len(indices)} outputs of the teacher). Correct num_classes of the student.'
            )
        return indices

    def precision(self) -> AbstractContextManager:
        """Return what the teacher runs under: autocast to its own type, if it has one."""
        if self.dtype is None or self.input_adapter is None:
            return nullcontext()
        return torch.autocast(self.input_adapter.scale.device.type, self.dtype)

    def adapt(self, inputs: Tensor) -> Tensor:
        """Turn images normalised for the student into images normalised for the teacher, of its size."""
        self.require_model()
        assert self.input_adapter is not None  # it comes with the model
        size = self.size_of(inputs)
        if size != tuple(inputs.shape[2:]):
            inputs = F.interpolate(inputs, size, mode='bilinear', align_corners=False, antialias=True)
        return self.input_adapter(inputs)

    def size_of(self, inputs: Tensor) -> tuple[int, int]:
        """Return height and width in which the teacher sees the student's images (B, C, H, W)."""
        height, width = inputs.shape[2:]
        if self.input_size is None:
            return height, width
        if isinstance(self.input_size, tuple):
            return self.input_size
        return max(round(height * self.input_size), 1), max(round(width * self.input_size), 1)

    def require_model(self) -> nn.Module:
        """Return the whole teacher.

        Raises:
            RuntimeError: If only its classifier was loaded.
        """
        if self.model is None:
            raise RuntimeError('The teacher was loaded without its backbone (full=False): it cannot run.')
        return self.model

    @torch.no_grad()
    def __call__(self, inputs: Tensor, data_samples: Any = None) -> Any:
        """Run the teacher on the student's preprocessed inputs, in mode 'tensor'.

        Not under ``inference_mode``: its tensors must be able to enter a trainable denoiser. Never in mode 'loss', which would
        assign targets for nothing and draw random numbers.

        Args:
            inputs (Tensor): Images of shape (B, C, H, W), normalised for the student.
            data_samples (list, optional): Passed on. Defaults to None.

        Returns:
            Any: The host's raw output.
        """
        return self.require_model()(self.adapt(inputs), data_samples, mode='tensor')

    def apply_to_tensors(self, fn: Callable[[Tensor], Tensor]) -> None:
        """Follow a distiller that is moved or cast (``nn.Module._apply``)."""
        for module in (self.model, *self.classifiers, self.input_adapter):
            if module is not None:
                module._apply(fn)


def check_input_size(size: Any) -> tuple[int, int] | float | None:
    """Return the argument ``input_size`` of a teacher.

    Raises:
        ValueError: If it is neither a height and width nor a factor. A whole number could be meant as either.
    """
    if size is None or (isinstance(size, float) and 0 < size < float('inf')):
        return size
    if isinstance(size, Sequence) and len(size) == 2 and all(isinstance(side, int) and side > 0 for side in size):
        return size[0], size[1]
    raise ValueError(
        'input_size of a teacher expects height and width in pixels, such as (224, 224), or a factor with a point, such as '
        f'2.0, but got {size!r}.'
    )


def narrowed(module: nn.Module, dtype: torch.dtype | None) -> nn.Module:
    """Return a module whose convolutions and linear layers hold what autocast would make of them in every step, in place."""
    if dtype is not None:
        for layer in module.modules():
            if isinstance(layer, (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)):
                layer.to(dtype)
    return module


def build_in_scope(config: ConfigDict, scope: str | None) -> nn.Module:
    """Build a model, or a part of one, under the scope of its own library."""
    # Heads write into their configs (DETRHead turns a class weight into a tensor), and cannot be built from them again.
    config = ConfigDict(copy.deepcopy(config))
    if scope is not None:
        config.setdefault('_scope_', scope)
    return MMENGINE_MODELS.build(config)
