"""SimKD: the teacher's classifier on the student's projected feature, folded into the student's own layer."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from dskd_mm.distillers.base import Distiller, HeadLoss
from dskd_mm.distillers.options import MethodOptions, check_images
from dskd_mm.features import ChannelAlign, align_levels
from dskd_mm.functional import mean_squared_error
from dskd_mm.guidance.classifier import computes_as
from dskd_mm.registry import MODELS, build
from dskd_mm.sites import Site
from dskd_mm.structures import ModelOutputs, TapSpec


@dataclass(kw_only=True)
class SimKDOptions(MethodOptions):
    """Options of :class:`SimKDDistiller`.

    Attributes:
        align (dict): Arguments of :class:`~dskd_mm.features.ChannelAlign`, the projector; linear in evaluation, so that it can
            be folded. Defaults to none: a 1x1 convolution and batch norm.
        loss_weights (dict): Weight of 'feature'. Defaults to 1.
    """

    losses: ClassVar[dict[str, float]] = dict(feature=1.0)

    align: dict | None = None
    loss_weights: Any = None

    def check(self, owner: str, site: Site, student: TapSpec, teacher: TapSpec) -> None:
        """See :meth:`MethodOptions.check`."""
        super().check(owner, site, student, teacher)
        check_images(owner, site)
        align = self.align or {}
        if align.get('kind', 'conv') not in ('conv', 'identity') or align.get('norm', 'BN') not in ('BN', 'SyncBN', None):
            raise ValueError(
                f'{owner} folds its projector into one linear layer and expects align of kind="conv" or '
                f'"identity" and norm="BN", "SyncBN" or None, but got {dict(align)}.'
            )
        if not site.ends_in_classifier(student):
            raise ValueError(
                f'{owner} expects a student whose logits are one linear layer of the feature, or of its average over the '
                f'map, but those of this one are made of more than {student.classifiers[0]!r} of {student.features[0]!r}. '
                'Leave out the feature that you named, or choose SRRL, whose student keeps its own classifier.'
            )


@MODELS.register_module()
class SimKDDistiller(Distiller):
    r"""Knowledge Distillation with the Reused Teacher Classifier (Chen et al., CVPR 2022).

    The student's feature, mapped to the teacher's channels by a projector, is to be the teacher's, and is classified by the
    teacher's own frozen classifier. With z the projected map and f the teacher's, in the student's resolution:

    - ``loss_simkd_feature``: the mean squared error of z against f.

    Nothing else trains: the student's own losses count 0. The weight is 1, as in the authors' code (DefangChen/SimKD).

    The authors' projector is a bottleneck of three convolutions, which stays in their deployed student. Here it is a 1x1
    convolution and batch norm. In evaluation these, the pooling and the teacher's classifier W, b are one linear layer of the
    student's own shape:

    .. math:: W\,(A\,\bar F_s + a) + b = (W A)\,\bar F_s + (W a + b)

    That layer is written into the student whenever it is evaluated (``eval()``) or saved. So the plain student is the one that
    was trained; what ``distill_losses`` on logits teach its layer is overwritten.

    Args:
        student (dict | nn.Module): The student: a host's model that ends in a linear layer with a bias.
        teacher (dict): ``dict(config=..., checkpoint=...)``, see :class:`~dskd_mm.teacher.FrozenTeacher`.
        kwargs: Arguments of :class:`Distiller` and fields of :class:`SimKDOptions`.

    Raises:
        ValueError: If the student is no classifier of images, or does not end in such a layer.
    """

    options_class = SimKDOptions
    options: SimKDOptions
    compares_with_teacher = True

    def __init__(self, student: dict | nn.Module, teacher: dict, **kwargs: Any) -> None:
        super().__init__(student, teacher, **kwargs)
        if not computes_as(self.classifier, nn.Linear) or self.classifier.bias is None:
            raise ValueError(
                f"SimKDDistiller writes weight and bias into the student's {self.student_spec.classifiers[0]!r} and expects a "
                f'linear layer with a bias, but it is {self.classifier}. Choose SRRL, whose student keeps its own classifier.'
            )
        channels = dict(in_channels=self.student_spec.channels, out_channels=self.teacher_spec.channels)
        self.align = build(ChannelAlign, self.options.align, **channels)

    @property
    def classifier(self) -> Any:
        """The student's last layer."""
        return self.student.get_submodule(self.student_spec.classifiers[0])

    def train(self, mode: bool = True) -> 'SimKDDistiller':
        """Set the mode of all modules; :meth:`fold` before evaluation."""
        if not mode:
            self.fold()
        return super().train(mode)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the state of the module; :meth:`fold` before."""
        self.fold()
        return super().state_dict(*args, **kwargs)

    def loss(self, inputs: Tensor, data_samples: list) -> dict[str, Tensor]:
        """See :meth:`Distiller.loss`; the student's own losses count 0."""
        losses: dict[str, Any] = super().loss(inputs, data_samples)
        for name in self._student_losses:
            if 'loss' in name:
                value = losses[name]
                # Still in the graph: DDP waits for every parameter.
                losses[name] = value * 0 if isinstance(value, Tensor) else [each * 0 for each in value]
        return losses

    def distill(self, student: ModelOutputs, teacher: Any, target: Any, head_loss: HeadLoss) -> dict[str, Tensor]:
        """See :meth:`Distiller.distill`."""
        pyramid, aligned = align_levels(self.align, student.features)
        weight = self.options.loss_weights['feature']
        return dict(loss_simkd_feature=weight * mean_squared_error(aligned, pyramid.pack(teacher.features)))

    @torch.no_grad()
    def fold(self) -> None:
        """Write projector and teacher's classifier into the student's own layer; before a teacher is loaded, do nothing."""
        if not self.teacher.is_loaded:
            return
        (theirs,) = self.teacher.classifiers
        weight, bias = theirs.weight, torch.zeros_like(theirs.weight[:, 0]) if theirs.bias is None else theirs.bias
        if len(self.align.layers):
            convolution, norm = self.align.layers
            matrix, shift = convolution.weight, convolution.bias
            if not isinstance(norm, nn.Identity):
                statistics = norm.running_mean, norm.running_var, norm.eps
                matrix, shift = fuse_conv_bn_weights(matrix, shift, *statistics, norm.weight, norm.bias)
            with torch.autocast(weight.device.type, enabled=False):
                weight, bias = weight @ matrix.flatten(1), bias + weight @ shift
        self.classifier.weight.copy_(weight)
        self.classifier.bias.copy_(bias)
