"""VkD: feature distillation through an orthogonal projection."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from dskd_mm.distillers.base import Distiller, HeadLoss
from dskd_mm.distillers.options import MethodOptions, check_choice
from dskd_mm.features.widths import each_level
from dskd_mm.functional import mean, standardize
from dskd_mm.losses import KDLoss
from dskd_mm.registry import MODELS, build
from dskd_mm.sites import NECK_SITES, Site
from dskd_mm.structures import ModelOutputs, TapSpec

EPSILON = 1e-5
"""Added to the variance of what is standardised, as batch and layer norms do."""

DETECTION = dict(normalization='standardize', loss_weights=dict(feature=4.0))


class OrthogonalProjection(nn.Module):
    r"""A linear map P without bias whose columns stay orthonormal, :math:`P^\top P = I`; its rows, if it narrows.

    It keeps the angles and lengths of the student's features, so the student itself has to learn the teacher's, not its
    projector.

    Args:
        in_channels (int): Channels of the student.
        out_channels (int): Channels of the teacher.
        orthogonal_map (str): Which parametrization of PyTorch, 'cayley' or 'matrix_exp'. They reach the same matrices; the
            first is about ten times as fast. Defaults to 'cayley'. PyTorch's choice for rectangular matrices, 'householder', is
            refused: it reads signs off the parameters' diagonal by rounding towards 0, so the first step of any weight decay
            turns P into zeros.

    Raises:
        ValueError: If the parametrization is another one.
    """

    def __init__(self, in_channels: int, out_channels: int, orthogonal_map: str = 'cayley') -> None:
        super().__init__()
        if orthogonal_map not in ('cayley', 'matrix_exp'):
            raise ValueError(
                f"orthogonal_map of OrthogonalProjection must be 'cayley' or 'matrix_exp', but got {orthogonal_map!r}; "
                "'householder' does not survive weight decay."
            )
        self.linear = parametrizations.orthogonal(
            nn.Linear(in_channels, out_channels, bias=False), orthogonal_map=orthogonal_map
        )

    def forward(self, maps: Tensor) -> Tensor:
        """Map (B, in_channels, ...) to (B, out_channels, ...), in float32: in half precision P would not be orthogonal."""
        with torch.autocast(device_type=maps.device.type, enabled=False):
            weight: Any = self.linear.weight
            return (weight @ maps.float().flatten(2)).unflatten(2, maps.shape[2:])


@dataclass(kw_only=True)
class VkDOptions(MethodOptions):
    """Options of :class:`VkDDistiller`.

    Attributes:
        normalization (str): 'layernorm' for a layer norm of the teacher's feature over its channels, without affine
            parameters; 'standardize' for zero mean and unit variance of each channel over all locations of the batch, on both
            sides; 'whiten' for a teacher's feature whose channels are uncorrelated, the paper's choice for generative tasks,
            see :func:`whiten`. Defaults to 'layernorm' for classification and segmentation, 'standardize' for detectors.
        pool (bool): Whether maps are averaged over their locations first. Defaults to True in classification only, our reading,
            for what counts there is one vector of each image.
        projector (dict): Further arguments of :class:`OrthogonalProjection`. Defaults to none.
        temperature (float): Of the loss on the logits. Defaults to 1.
        loss_weights (dict): Weights of 'feature' and 'logit'. Those not named are 1, but 4 for the feature of detectors and 0
            for logits where the site has none.
    """

    task_defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        'classification': dict(pool=True),
        'dense_detection': DETECTION,
        'two_stage_detection': DETECTION,
        'neck': DETECTION,
    }
    losses: ClassVar[Mapping[str, float]] = dict(feature=1.0, logit=1.0)

    normalization: str = 'layernorm'
    pool: bool = False
    projector: dict | None = None
    temperature: float = 1.0
    loss_weights: Any = None

    @classmethod
    def defaults(cls, given: Mapping[str, Any], site: Site, student: TapSpec, teacher: TapSpec) -> dict[str, Any]:
        """See :meth:`MethodOptions.defaults`."""
        values = super().defaults(given, site, student, teacher)
        if not teacher.classifiers:
            values['loss_weights']['logit'] = 0.0
        return values

    def check(self, owner: str, site: Site, student: TapSpec, teacher: TapSpec) -> None:
        """See :meth:`MethodOptions.check`."""
        super().check(owner, site, student, teacher)
        check_choice(owner, 'normalization', self.normalization, ('layernorm', 'standardize', 'whiten'))
        if self.pool and isinstance(student.channels, tuple):
            raise ValueError(
                f'pool=True of {owner} averages over all levels, but they have {student.channels} channels: set pool=False.'
            )
        if self.loss_weights['logit'] and not teacher.classifiers:
            raise ValueError(f'{type(site).__name__} has no class logits: set loss_weights=dict(logit=0) of {owner}.')


@MODELS.register_module()
class VkDDistiller(Distiller):
    r"""Improving Knowledge Distillation using Orthogonal Projections (Miles, Elezi & Deng, CVPR 2024, arXiv 2403.06213).

    ``loss_vkd_feature`` is the smooth L1 distance between P F_s and the normalised F_t, where P is an
    :class:`OrthogonalProjection`; ``loss_vkd_logit`` the KL divergence between the logits.

    Known from the paper and its code: the projection, smooth L1, the normalisation of classification and detection, and the
    weights. Ours: another parametrization of the same projections (see there); segmentation, which the paper has not, is done
    as classification is, pixel by pixel; a teacher's map of another size is resized; statistics are those of the batch on a
    device, not over ranks. Each level of a pyramid has its own projector and is normalised by itself, and the levels' losses
    are summed, as in the authors' detector. Their scale and bias after the projection, one for each level, are left out:
    what is standardised next takes them away again. Where a neck does not tell how many levels it has, one projector serves
    all.

    Args:
        student (dict | nn.Module): The student: a host's model. Detectors are distilled at their neck unless a site is given.
        teacher (dict): ``dict(config=..., checkpoint=...)``, see :class:`~dskd_mm.teacher.FrozenTeacher`.
        kwargs: Arguments of :class:`Distiller` and fields of :class:`VkDOptions`.

    Raises:
        ValueError: If a switch has an unknown value, or logits are asked for where there are none.
    """

    options_class = VkDOptions
    options: VkDOptions
    default_sites = NECK_SITES
    compares_with_teacher = True
    renamed_keys = {'projector.': 'projectors.0.'}

    def __init__(self, student: dict | nn.Module, teacher: dict, **kwargs: Any) -> None:
        super().__init__(student, teacher, **kwargs)
        self.imitation = KDLoss(self.options.temperature)
        spec = self.student_spec
        count = 1 if self.options.pool else spec.level_count
        widths = zip(each_level(spec.channels, count), each_level(self.teacher_spec.channels, count), strict=True)
        self.projectors = nn.ModuleList(
            build(OrthogonalProjection, self.options.projector, in_channels=own, out_channels=theirs) for own, theirs in widths
        )

    def distill(self, student: ModelOutputs, teacher: Any, target: Any, head_loss: HeadLoss) -> dict[str, Tensor]:
        """See :meth:`Distiller.distill`."""
        ours, theirs = ([level.flatten(2) for level in model.features] for model in (student, teacher))
        if self.options.pool:
            ours, theirs = ([level.float().mean(dim=2, keepdim=True) for level in levels] for levels in (ours, theirs))
        projectors = list(self.projectors) * (len(ours) if len(self.projectors) == 1 else 1)
        levels = [
            smooth_l1(*self._normalize(projector(level), wanted))
            for projector, level, wanted in zip(projectors, ours, theirs, strict=True)
        ]
        losses = {'loss_vkd_feature': self.options.loss_weights['feature'] * torch.stack(levels).sum()}
        if self.options.loss_weights['logit']:
            logit = self.imitation(student.logits, teacher.logits, target, self.teacher_spec.sigmoid)
            losses['loss_vkd_logit'] = self.options.loss_weights['logit'] * logit
        return losses

    def _normalize(self, ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(device_type=theirs.device.type, enabled=False):
            theirs = theirs.float()
            if self.options.normalization == 'standardize':
                return standardize(ours, EPSILON), standardize(theirs, EPSILON)
            if self.options.normalization == 'whiten':
                return ours, whiten(theirs)
            return ours, F.layer_norm(theirs.transpose(1, 2), theirs.shape[1:2]).transpose(1, 2)


def smooth_l1(ours: Tensor, theirs: Tensor) -> Tensor:
    """Return the mean smooth L1 distance; 0, still in the graph, without any element (a batch without proposals)."""
    return mean(F.smooth_l1_loss(ours, theirs, reduction='none'))


def whiten(packed: Tensor, shrinkage: float = 1e-3) -> Tensor:
    r"""Return channels of (B, C, N) with zero mean and the identity as covariance over all images and locations.

    The paper does not say by which of the many square roots. This is :math:`L^{-1}(f-\mu)` of the Cholesky factor L, as in
    W-MSE (Ermolov et al. 2021), for the device need not wait as for eigenvectors. With fewer vectors than channels the
    covariance has no inverse, so a share of the mean variance is mixed in.

    Args:
        packed (Tensor): Of shape (B, C, N), float32.
        shrinkage (float): Share of the mean variance in the covariance. Defaults to 0.001.
    """
    batch, channels, length = packed.shape
    vectors = packed.transpose(0, 1).flatten(1)
    vectors = vectors - vectors.mean(dim=1, keepdim=True)
    covariance = vectors @ vectors.T / max(batch * length, 1)
    spread = covariance.diagonal().mean() * shrinkage + 1e-8
    covariance = covariance * (1 - shrinkage) + spread * torch.eye(channels, device=packed.device)
    factor = torch.linalg.cholesky_ex(covariance).L
    white = torch.linalg.solve_triangular(factor, vectors, upper=False)
    return white.unflatten(1, (batch, length)).transpose(0, 1)
