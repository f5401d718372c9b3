"""Semantic segmentation: the input of the decode head's last 1x1 convolution."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from dskd_mm.features import find_module
from dskd_mm.registry import MODELS
from dskd_mm.sites.annotations import check_annotated
from dskd_mm.sites.base import Site
from dskd_mm.structures import TapRecord, TapSpec, Target
from dskd_mm.teacher import FrozenTeacher


@MODELS.register_module()
class SegmentationSite(Site):
    """The site of mmseg's ``EncoderDecoder``.

    The classifier is ``conv_seg`` of the decode head (of the last one in a cascade), applied to every pixel of its input; the
    feature is that input before its dropout. Targets are the label maps at the logits' resolution, nearest pixel, without the
    ignored ones. Auxiliary heads are left alone. A head of one output channel (``threshold``) is a sigmoid for the class 1.

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
        part, head = self.part, find_module(model, self.part, 'student')
        if isinstance(head, nn.ModuleList):
            part, head = f'{part}.{len(head) - 1}', head[-1]
        return decode_head_spec(head, part, self.classifier, 'student')

    def teacher_spec(self, model: nn.Module | None, teacher: FrozenTeacher) -> TapSpec:
        """See :meth:`Site.teacher_spec`."""
        part, config = self.part, teacher.part_config(self.part)
        if isinstance(config, list):
            part = f'{part}.{len(config) - 1}'
        head = teacher.build_part(part) if model is None else model.get_submodule(part)
        return decode_head_spec(head, part, self.teacher_classifier, 'teacher')

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


def decode_head_spec(head: nn.Module, part: str, classifier: str | None, owner: str) -> TapSpec:
    """Return where a decode head is tapped.

    Raises:
        ValueError: If the classification layer is no convolution.
    """
    name = 'conv_seg' if classifier is None else classifier.removeprefix(f'{part}.')
    layer: Any = find_module(head, name, f"{owner}'s decode head")
    if not isinstance(layer, nn.Conv2d):
        raise ValueError(
            f"The {owner}'s classification layer '{part}.{name}' is expected to be a convolution, but it is {layer}. Name "
            'another one in the site.'
        )
    # The layer's own input has passed the dropout, which differs between student and teacher.
    has_dropout = name == 'conv_seg' and isinstance(getattr(head, 'dropout', None), nn.Module)
    return TapSpec(
        part=part,
        classifiers=(f'{part}.{name}',),
        # As mmseg predicts, whatever its losses are and in which order: of several outputs it takes the highest.
        sigmoid=layer.out_channels == 1,
        num_classes=layer.out_channels,
        features=(f'{part}.dropout' if has_dropout else f'{part}.{name}',),
        io='input',
        channels=layer.in_channels,
        is_dense=True,
        num_labels=max(layer.out_channels, 2),  # one output tells two classes apart
        ignore_index=int(getattr(head, 'ignore_index', 255)),
    )
