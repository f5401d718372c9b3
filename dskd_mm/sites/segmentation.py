"""Semantic segmentation: the input of the decode head's last 1x1 convolution."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dskd_mm.features import find_module
from dskd_mm.registry import MODELS
from dskd_mm.sites.annotations import check_annotated
from dskd_mm.sites.base import Site, calling_the_head
from dskd_mm.structures import TapRecord, TapSpec, Target
from dskd_mm.teacher import FrozenTeacher


@MODELS.register_module()
class SegmentationSite(Site):
    """The site of mmseg's ``EncoderDecoder``.

    The classifier is ``conv_seg`` of the decode head, applied to every pixel of its input; the feature is that input before its
    dropout. In a cascade it is that of the last head which has one: of PointRend the first, whose map is then refined point by
    point. In K-Net it is that of the head which makes the first kernels, and losses on logits read the map of the last stage.
    Targets are the label maps at the logits' resolution, nearest pixel, without the ignored ones. Auxiliary heads are left
    alone. A head of one output channel (``threshold``) is a sigmoid for the class 1.

    Args:
        vectors_per_image (int): How many pixels of an image are hashed, chosen with the same chance for every class that occurs
            in it. Defaults to 256.
        classifier (str, optional): Path of the student's classification layer. Defaults to None: ``conv_seg`` of the head.
        teacher_classifier (str, optional): The same of the teacher. Defaults to None.
    """

    task = 'segmentation'
    norm = 'BN'
    part = 'decode_head'

    def __init__(
        self, vectors_per_image: int = 256, classifier: str | None = None, teacher_classifier: str | None = None
    ) -> None:
        self.vectors_per_image = vectors_per_image
        self.classifier = classifier
        self.teacher_classifier = teacher_classifier

    def student_spec(self, model: nn.Module) -> TapSpec:
        """See :meth:`Site.student_spec`."""
        head = find_module(model, self.part, 'student')
        stages = list(head) if isinstance(head, nn.ModuleList) else None
        return self._spec(head if stages is None else stages, self.classifier, 'student')

    def teacher_spec(self, model: nn.Module | None, teacher: FrozenTeacher) -> TapSpec:
        """See :meth:`Site.teacher_spec`."""
        config = teacher.part_config(self.part)
        stages = range(len(config)) if isinstance(config, list) else [None]
        parts = [self.part if stage is None else f'{self.part}.{stage}' for stage in stages]
        heads = [teacher.build_part(part) if model is None else model.get_submodule(part) for part in parts]
        return self._spec(heads if isinstance(config, list) else heads[0], self.teacher_classifier, 'teacher')

    def _spec(self, head: nn.Module | list[nn.Module], classifier: str | None, owner: str) -> TapSpec:
        """Return where a decode head is tapped, in a cascade the last one that classifies, or the one of a given layer."""
        parts = {f'{self.part}.{i}': stage for i, stage in enumerate(head)} if isinstance(head, list) else {self.part: head}
        for part, stage in reversed(parts.items()):
            name = find_classifier(stage) if classifier is None else classifier.removeprefix(f'{part}.')
            if name and not name.startswith(f'{self.part}.'):  # else it is in an earlier stage
                number = int(part.rpartition('.')[2]) if isinstance(head, list) else None
                return replace(decode_head_spec(stage, part, name, owner), stage=number)
        names = ' and '.join(type(stage).__name__ for stage in parts.values())
        raise ValueError(
            f"The {owner}'s decode head ({names}) is expected to classify pixels by a convolution "
            f'{classifier or "conv_seg"!r}, but has none.'
        )

    def check(self, data_samples: Sequence[Any], spec: TapSpec) -> None:
        """Check label maps on the CPU; those on an accelerator are not read back, which would make it wait.

        Raises:
            ValueError: If a label lies outside the classes.
        """
        check_annotated(data_samples, 'gt_sem_seg')
        highest = spec.num_labels - 1
        for i, sample in enumerate(data_samples):
            labels = sample.gt_sem_seg.data
            if labels.device.type != 'cpu':
                continue
            wrong = (labels != spec.ignore_index) & ((labels < 0) | (labels > highest))
            if bool(wrong.any()):
                raise ValueError(
                    f'Sample {i} ({sample.get("img_path", "image in memory")}) has the labels '
                    f'{sorted(labels[wrong].unique().tolist())[:5]} in its label map, but the teacher knows the classes 0 to '
                    f'{highest} and ignores {spec.ignore_index}: correct the annotations, num_classes or reduce_zero_label.'
                )

    def run_teacher(
        self, teacher: FrozenTeacher, spec: TapSpec, inputs: Tensor, data_samples: Sequence[Any], student: TapRecord
    ) -> None:
        """Run the teacher, a cascade up to the stage that is tapped: PointRend's last one looks at points."""
        if spec.stage is None:
            return super().run_teacher(teacher, spec, inputs, data_samples, student)
        model: Any = teacher.model
        maps = model.extract_feat(teacher.adapt(inputs))
        output: tuple[Tensor, ...] = ()
        for head in model.decode_head[: spec.stage + 1]:
            with calling_the_head(self, head):
                output = (head(maps, *output),)
        return None

    def target(self, record: TapRecord, data_samples: Sequence[Any], num_classes: int, sigmoid: bool) -> Target:
        """Return label maps as one-hot maps (B, K, M); ignored pixels weigh nothing."""
        (logits,) = record.logits
        labels = torch.stack([sample.gt_sem_seg.data for sample in data_samples]).to(logits.device)
        labels = F.interpolate(labels.float(), size=logits.shape[2:], mode='nearest').flatten(2).long()
        weight = (labels != record.spec.ignore_index).float()
        first = 1 if num_classes == 1 else 0  # a single output stands for the class 1
        classes = torch.arange(first, first + num_classes, device=logits.device)
        # Comparison instead of one_hot: that reads the labels back from the device.
        probability = (labels == classes[:, None]).float()
        return Target(probability, weight, self.avg_factor(probability, weight, sigmoid))


def find_classifier(head: nn.Module) -> str | None:
    """Return the path of a decode head's ``conv_seg``, in K-Net that of the head which makes the first kernels."""
    modules = head.named_modules()
    return next((name for name, layer in modules if name.split('.')[-1] == 'conv_seg' and isinstance(layer, nn.Conv2d)), None)


def decode_head_spec(head: nn.Module, part: str, name: str, owner: str) -> TapSpec:
    """Return where a decode head is tapped.

    Raises:
        ValueError: If the classification layer is no convolution.
    """
    layer: Any = find_module(head, name, f"{owner}'s decode head")
    if not isinstance(layer, nn.Conv2d):
        raise ValueError(
            f"The {owner}'s classification layer '{part}.{name}' is expected to be a convolution, but it is {layer}. Name "
            'another one in the site.'
        )
    # The layer's own input has passed the dropout, which differs between student and teacher.
    parent, _, leaf = f'{part}.{name}'.rpartition('.')
    dropout = getattr(head.get_submodule(name.rpartition('.')[0]), 'dropout', None)
    updates: Any = getattr(head, 'kernel_update_head', ())
    has_dropout = leaf == 'conv_seg' and isinstance(dropout, nn.Module)
    return TapSpec(
        part=part,
        classifiers=(f'{part}.{name}',),
        # As mmseg predicts, whatever its losses are and in which order: of several outputs it takes the highest.
        sigmoid=layer.out_channels == 1,
        num_classes=layer.out_channels,
        features=(f'{parent}.dropout' if has_dropout else f'{part}.{name}',),
        io='input',
        channels=layer.in_channels,
        is_dense=True,
        num_labels=max(layer.out_channels, 2),  # one output tells two classes apart
        ignore_index=int(getattr(head, 'ignore_index', 255)),
        # K-Net goes on from what the layer says, and predicts with the map of its last stage.
        logits_of=f'{part}.kernel_update_head.{len(updates) - 1}' if updates else None,
        logits_index=0,
    )
