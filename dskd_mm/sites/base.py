"""What a site has to tell a distiller."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dskd_mm.guidance import Target
from dskd_mm.registry import MODELS

SITES_BY_MODEL = {'mmpretrain.BaseClassifier': 'dskd_mm.ClassificationSite'}
"""Which site a student gets by itself: the host and name of one of its classes."""


@dataclass
class Port:
    """Where one model is tapped.

    Attributes:
        part (str): The part of the model that holds the classifier and has a config of its own, such as ``head``.
        classifier (str): Dotted path of the classification layer.
        sigmoid (bool): Whether its classes are independent.
        feature (str): Dotted path of the module whose input or output is the feature.
        io (str): 'input' or 'output'.
        index (int, optional): Which element, if the feature comes in a tuple; None for the last.
        channels (int): Channels of the feature.
        is_map (bool): Whether it has height and width.
        is_pooled (bool): Whether the classifier's own input is the average of the feature over its locations.
    """

    part: str
    classifier: str
    sigmoid: bool
    feature: str
    io: str
    index: int | None
    channels: int
    is_map: bool
    is_pooled: bool


class Site(ABC):
    """How a task's features, targets and vectors are obtained. Everything else is the same for all tasks."""

    part: str
    """Dotted path of the part that holds the classifier."""

    @abstractmethod
    def student_port(self, model: nn.Module) -> Port:
        """Find the classifier and the feature of a student."""

    @abstractmethod
    def teacher_port(self, model: nn.Module | None, head: nn.Module) -> Port:
        """Find the classifier of a teacher from its head alone, and its feature if the whole model is there."""

    @abstractmethod
    def target(self, data_samples: Sequence[Any], num_classes: int, sigmoid: bool, device: torch.device) -> Target:
        """The annotations as a distribution at the resolution of the classifier's logits."""

    @abstractmethod
    def check(self, data_samples: Sequence[Any], num_classes: int) -> None:
        """Refuse annotations that the classifier cannot be guided to, before anything else stumbles over them."""

    @abstractmethod
    def vectors(self, feature: Tensor, target: Target) -> Tensor:
        """The vectors (M, C) of a map (B, C, H, W) that are hashed."""


def build_site(config: dict | Site | None, student: nn.Module) -> Site:
    """Build a site, or choose one by the student's type.

    Args:
        config (dict | Site, optional): The site or its arguments, with or without a ``type``. Defaults to None.
        student (nn.Module): The student.

    Returns:
        Site: The site.

    Raises:
        TypeError: If none is known for the student and none is given.
    """
    if isinstance(config, Site):
        return config
    config = dict(config or {})
    if 'type' not in config:
        names = [f'{cls.__module__.split(".")[0]}.{cls.__name__}' for cls in type(student).__mro__]
        known = [SITES_BY_MODEL[name] for name in names if name in SITES_BY_MODEL]
        if not known:
            raise TypeError(
                f'No site is known for the student {names[0]}; known are the subclasses of {", ".join(SITES_BY_MODEL)}. '
                "Name one with site=dict(type='dskd_mm....')."
            )
        config['type'] = known[0]
    return MODELS.build(config)
