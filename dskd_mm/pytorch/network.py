"""A bare network as what a distiller knows: a model that has losses, a frozen teacher, a site."""

from dataclasses import replace
from typing import Any

import torch
from mmengine.model import BaseModel
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from dskd_mm.features.tap import find_module
from dskd_mm.pytorch.probe import Anatomy, logits_of
from dskd_mm.sites import ClassificationSite
from dskd_mm.structures import TapSpec
from dskd_mm.teacher import FrozenTeacher

PART = 'network'
"""The attribute that holds the network: paths in it begin with this."""


class NetworkClassifier(BaseModel):
    """Gives a network the losses and modes of mmengine's models. Its images are preprocessed already.

    Args:
        network (nn.Module): Returns logits (B, K) of images (B, C, H, W).
        anatomy (Anatomy): Where it is tapped.
        criterion (nn.Module): Its loss, of logits and labels. Defaults to None: cross-entropy.
    """

    def __init__(self, network: nn.Module, anatomy: Anatomy, criterion: nn.Module | None = None) -> None:
        super().__init__()
        self.network = network
        self.anatomy = anatomy
        self.criterion = criterion or nn.CrossEntropyLoss()

    def forward(self, inputs: Tensor, data_samples: list | None = None, mode: str = 'tensor') -> Any:
        """Return logits (B, K), or for mode 'loss' a dict of the loss."""
        logits = logits_of(self.network(inputs))
        if mode != 'loss':
            return logits
        assert data_samples is not None  # the distiller refuses steps without annotations
        return dict(loss_cls=self.criterion(logits, from_samples(data_samples).to(logits.device)))


class NetworkTeacher(FrozenTeacher):
    """A teacher that is in memory already. It is frozen and put into evaluation mode.

    Args:
        network (nn.Module): Returns logits (B, K) of the student's images (B, C, H, W).
        anatomy (Anatomy): Where it is tapped.
        kwargs: Further arguments of :class:`~dskd_mm.teacher.FrozenTeacher`.
    """

    def __init__(self, network: nn.Module, anatomy: Anatomy, **kwargs: Any) -> None:
        super().__init__(dict(type=NetworkClassifier.__name__), 'a network in memory', **kwargs)
        self.source = NetworkClassifier(network, anatomy)

    def build_model(self) -> nn.Module:
        """Return the teacher."""
        return self.source

    def build_part(self, path: str) -> nn.Module:
        """Return one part of the teacher."""
        return find_module(self.source, path, 'teacher')

    def load(self, spec: TapSpec, device: torch.device, full: bool, student_preprocessor: nn.Module) -> None:
        """See :meth:`FrozenTeacher.load`: there is nothing to read."""
        self.hold(self.source, spec, device, full, student_preprocessor)


class NetworkSite(ClassificationSite):
    """The site of bare networks: where they are tapped was found by :func:`~dskd_mm.pytorch.probe.examine`.

    Args:
        sigmoid (bool): Whether classes are independent of each other.
        kwargs: Further arguments of :class:`~dskd_mm.sites.ClassificationSite`.
    """

    part = PART

    def __init__(self, sigmoid: bool, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.sigmoid = sigmoid
        self.is_pooled = False

    def student_spec(self, model: Any) -> TapSpec:
        """See :meth:`Site.student_spec`."""
        self.is_pooled = model.anatomy.is_pooled
        return self._tap(model)

    def ends_in_classifier(self, spec: TapSpec) -> bool:
        """See :meth:`Site.ends_in_classifier`; numbers have been compared, in evaluation, where nothing drops out between."""
        return super().ends_in_classifier(replace(spec, is_pooled=self.is_pooled))

    def teacher_spec(self, model: nn.Module | None, teacher: FrozenTeacher) -> TapSpec:
        """See :meth:`Site.teacher_spec`."""
        return self._tap(teacher.build_model() if model is None else model)

    def _tap(self, model: Any) -> TapSpec:
        anatomy: Anatomy = model.anatomy
        path, feature = f'{PART}.{anatomy.classifier}', anatomy.feature
        return TapSpec(
            part=PART,
            classifiers=(path,),
            sigmoid=self.sigmoid,
            num_classes=anatomy.num_classes,
            num_labels=anatomy.num_classes,
            features=(path,) if feature is None else (f'{PART}.{feature}',),
            io='input' if feature is None else 'output',
            channels=anatomy.in_channels if feature is None else anatomy.channels[feature],
            is_map=feature is not None,
            logits_of=None if anatomy.returns_logits else PART,
        )


def to_samples(labels: Tensor, sigmoid: bool) -> list[BaseDataElement]:
    """Return labels as the annotations of images: class numbers (B, ), or scores of classes (B, K).

    Raises:
        ValueError: If they are of another shape or type.
    """
    if labels.ndim == 1 and not labels.is_floating_point() and not sigmoid:
        return [BaseDataElement(gt_label=label) for label in labels[:, None]]
    if labels.ndim == 2 and labels.is_floating_point():
        return [BaseDataElement(gt_score=score) for score in labels]
    kinds = 'a float tensor (B, K) of independent classes' if sigmoid else 'class numbers (B, ), or a float tensor (B, K)'
    raise ValueError(f'labels are expected as {kinds}, but got the shape {tuple(labels.shape)} of {labels.dtype}.')


def from_samples(samples: list[BaseDataElement]) -> Tensor:
    """Return what :func:`to_samples` was given."""
    if 'gt_score' in samples[0]:
        return torch.stack([sample.gt_score for sample in samples])
    return torch.cat([sample.gt_label for sample in samples])
