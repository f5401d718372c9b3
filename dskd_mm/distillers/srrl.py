"""SRRL: the student's feature in the teacher's frozen classifier."""

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from dskd_mm.distillers.base import Distiller, HeadLoss
from dskd_mm.distillers.options import MethodOptions, check_images
from dskd_mm.features import ChannelAlign, Pyramid, per_location
from dskd_mm.functional import mean_squared_error
from dskd_mm.registry import MODELS, build
from dskd_mm.sites import Site
from dskd_mm.structures import ModelOutputs, TapSpec


@dataclass(kw_only=True)
class SRRLOptions(MethodOptions):
    """Options of :class:`SRRLDistiller`.

    Attributes:
        relu (bool): Whether the connector ends in a ReLU, as the authors' does, whose teachers' features do. Defaults to True.
        align (dict): Arguments of :class:`~dskd_mm.features.ChannelAlign`, the connector before it. Defaults to none: a 1x1
            convolution and batch norm.
        loss_weights (dict): Weights of 'feature' and 'logit'. Those not named are 1.
    """

    losses: ClassVar[dict[str, float]] = dict(feature=1.0, logit=1.0)

    relu: bool = True
    align: dict | None = None
    loss_weights: Any = None

    def check(self, owner: str, site: Site, student: TapSpec, teacher: TapSpec) -> None:
        """See :meth:`MethodOptions.check`."""
        super().check(owner, site, student, teacher)
        check_images(owner, site)


@MODELS.register_module()
class SRRLDistiller(Distiller):
    r"""Knowledge Distillation via Softmax Regression Representation Learning (Yang et al., ICLR 2021).

    The student's feature, mapped to the teacher's channels by a connector, goes through the teacher's own frozen classifier, as
    the anchor of :class:`DSKDDistiller` does. With z that feature, averaged over its locations, f the teacher's and W its
    classifier:

    - ``loss_srrl_feature``: the mean squared error of z against f;
    - ``loss_srrl_logit``: that of W z against the teacher's logits.

    Both weigh 1, as in the authors' code for ImageNet (jingyang2017/KD_SRRL).

    Args:
        student (dict | nn.Module): The student: a host's model.
        teacher (dict): ``dict(config=..., checkpoint=...)``, see :class:`~dskd_mm.teacher.FrozenTeacher`.
        kwargs: Arguments of :class:`Distiller` and fields of :class:`SRRLOptions`.

    Raises:
        ValueError: If the student is no classifier of images.
    """

    options_class = SRRLOptions
    options: SRRLOptions
    compares_with_teacher = True

    def __init__(self, student: dict | nn.Module, teacher: dict, **kwargs: Any) -> None:
        super().__init__(student, teacher, **kwargs)
        channels = dict(in_channels=self.student_spec.channels, out_channels=self.teacher_spec.channels)
        self.align = build(ChannelAlign, self.options.align, **channels)

    def distill(self, student: ModelOutputs, teacher: Any, target: Any, head_loss: HeadLoss) -> dict[str, Tensor]:
        """See :meth:`Distiller.distill`."""
        weights, pyramid = self.options.loss_weights, Pyramid.of(student.features)
        aligned = per_location(self.align, Pyramid.pack(student.features)).float()
        aligned = aligned.relu() if self.options.relu else aligned
        theirs = Pyramid.pack(teacher.features).float()
        logits = pyramid.map(self.teacher.classifiers, aligned)
        return dict(
            loss_srrl_feature=weights['feature'] * mean_squared_error(aligned.mean(dim=2), theirs.mean(dim=2)),
            loss_srrl_logit=weights['logit'] * mean_squared_error(logits, teacher.logits),
        )
