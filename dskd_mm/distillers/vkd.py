"""VkD: feature distillation through an orthogonal projection."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from dskd_mm.distillers.base import Distiller, HeadLoss, build, read_weights
from dskd_mm.features import Pyramid
from dskd_mm.guidance import Target
from dskd_mm.losses import KDLoss
from dskd_mm.losses.base import mean, standardize
from dskd_mm.registry import MODELS
from dskd_mm.sites import NECK_SITES, Observed

EPSILON = 1e-5
"""Added to the variance of what is standardised, as batch and layer norms do."""


class CayleyMap(nn.Module):
    r"""PyTorch's parametrization by the Cayley map, :math:`B (I - A/2)^{-1} (I + A/2)`, A skew-symmetric, without its wait:
    ``torch.linalg.solve`` tells the host whether the matrix is singular, which :math:`I - A/2` never is.

    Args:
        base (Tensor): B, an orthogonal matrix (n, n): where learning starts.
    """

    base: Tensor

    def __init__(self, base: Tensor) -> None:
        super().__init__()
        self.register_buffer('base', base)

    def forward(self, x: Tensor) -> Tensor:
        """Map any matrix to one of the same shape whose columns are orthonormal; its rows, if it is wide."""
        if x.shape[0] < x.shape[1]:
            return self.forward(x.mT).mT
        size, columns = x.shape
        lower = F.pad(x.tril(), (0, size - columns))
        skew = lower - lower.mT
        identity = torch.eye(size, dtype=x.dtype, device=x.device)
        rotation = torch.linalg.solve_ex(identity - skew / 2, identity + skew / 2).result
        return self.base @ rotation[:, :columns]


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
        if orthogonal_map == 'cayley':
            maps: Any = self.linear.parametrizations
            maps.weight[0] = CayleyMap(maps.weight[0].base)

    def forward(self, packed: Tensor) -> Tensor:
        """Map (B, in_channels, N) to (B, out_channels, N), in float32: in half precision P would not be orthogonal."""
        with torch.autocast(device_type=packed.device.type, enabled=False):
            weight: Any = self.linear.weight
            return weight @ packed.float()


@MODELS.register_module()
class VkDDistiller(Distiller):
    r"""Improving Knowledge Distillation using Orthogonal Projections (Miles, Elezi & Deng, CVPR 2024, arXiv 2403.06213).

    ``loss_vkd_feature`` is the smooth L1 distance between P F_s and the normalised F_t, where P is an
    :class:`OrthogonalProjection`; ``loss_vkd_logit`` the KL divergence between the logits.

    Known from the paper and its code: the projection, smooth L1, the normalisation of classification and detection, and the
    weights. Ours: another parametrization of the same projections (see there); segmentation, which the paper has not, is done
    as classification is, pixel by pixel; the levels of a neck are standardised together, as the tokens of its transformer
    are, and their losses summed; a teacher's map of another size is resized; statistics are those of the batch on a device,
    not over ranks.

    Args:
        student (dict | nn.Module): The student: a host's model. Detectors are distilled at their neck unless a site is given.
        teacher (dict): ``dict(config=..., checkpoint=...)``, see :class:`~dskd_mm.teacher.FrozenTeacher`.
        normalization (str, optional): 'layernorm' for a layer norm of the teacher's feature over its channels, without affine
            parameters; 'standardize' for zero mean and unit variance of each channel over all locations of the batch, on both
            sides; 'whiten' for a teacher's feature whose channels are uncorrelated, the paper's choice for generative tasks,
            see :func:`whiten`. Defaults to None: 'layernorm' for classification and segmentation, 'standardize' for
            detectors.
        pool (bool, optional): Whether maps are averaged over their locations first. Defaults to None: in classification only,
            our reading, for what counts there is one vector of each image.
        projector (dict, optional): Further arguments of :class:`OrthogonalProjection`. Defaults to None.
        temperature (float): Of the loss on the logits. Defaults to 1.
        loss_weights (dict, optional): Weights of 'feature' and 'logit'. Those not named are 1, but 4 for the feature of
            detectors and 0 for logits where the site has none.
        kwargs: Arguments of :class:`Distiller`: site, layers, distill_losses, warmup, noise_seed, data_preprocessor.

    Raises:
        ValueError: If a switch has an unknown value, or logits are asked for where there are none.
    """

    default_sites = NECK_SITES
    compares_with_teacher = True

    def __init__(
        self,
        student: dict | nn.Module,
        teacher: dict,
        normalization: str | None = None,
        pool: bool | None = None,
        projector: dict | None = None,
        temperature: float = 1.0,
        loss_weights: dict | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(student, teacher, **kwargs)
        detects = self.site.task == 'detection'
        if normalization is None:
            normalization = 'standardize' if detects else 'layernorm'
        known = ('layernorm', 'standardize', 'whiten')
        if normalization not in known:
            raise ValueError(f'normalization of VkDDistiller must be one of {known}, but got {normalization!r}.')
        has_logits = bool(self.teacher_port.classifiers)
        default = dict(feature=4.0 if detects else 1.0, logit=float(has_logits))
        self.loss_weights = read_weights(type(self).__name__, default, loss_weights)
        if self.loss_weights['logit'] and not has_logits:
            raise ValueError(f'{type(self.site).__name__} has no class logits: set loss_weights=dict(logit=0) of VkDDistiller.')
        self.normalization = normalization
        self.pool = self.site.task == 'classification' if pool is None else pool
        self.imitation = KDLoss(temperature)
        channels = dict(in_channels=self.student_port.channels, out_channels=self.teacher_port.channels)
        self.projector = build(OrthogonalProjection, projector, **channels)

    def distill(
        self, student: Observed, teacher: Observed | None, target: Target | None, head_loss: HeadLoss
    ) -> dict[str, Tensor]:
        """See :meth:`Distiller.distill`."""
        assert teacher is not None
        ours, theirs = Pyramid.pack(student.features), Pyramid.pack(teacher.features)
        lengths = Pyramid.of(student.features).lengths
        if self.pool:
            ours, theirs, lengths = ours.float().mean(dim=2, keepdim=True), theirs.mean(dim=2, keepdim=True), [1]
        ours, theirs = self._normalize(self.projector(ours), theirs)
        levels = [smooth_l1(*pair) for pair in zip(ours.split(lengths, dim=2), theirs.split(lengths, dim=2), strict=True)]
        losses = {'loss_vkd_feature': self.loss_weights['feature'] * torch.stack(levels).sum()}
        if self.loss_weights['logit']:
            assert student.logits is not None and teacher.logits is not None and target is not None
            logit = self.imitation(student.logits, teacher.logits, target, self.teacher_port.sigmoid)
            losses['loss_vkd_logit'] = self.loss_weights['logit'] * logit
        return losses

    def _normalize(self, ours: Tensor, theirs: Tensor) -> tuple[Tensor, Tensor]:
        with torch.autocast(device_type=theirs.device.type, enabled=False):
            theirs = theirs.float()
            if self.normalization == 'standardize':
                return standardize(ours, EPSILON), standardize(theirs, EPSILON)
            if self.normalization == 'whiten':
                return ours, whiten(theirs)
            return ours, F.layer_norm(theirs.transpose(1, 2), theirs.shape[1:2]).transpose(1, 2)


def smooth_l1(ours: Tensor, theirs: Tensor) -> Tensor:
    """Smooth L1 distance, averaged over all elements; 0 and still in the graph without any (a batch without proposals)."""
    return mean(F.smooth_l1_loss(ours, theirs, reduction='none'))


def whiten(packed: Tensor, shrinkage: float = 1e-3) -> Tensor:
    r"""Channels of (B, C, N) with zero mean and the identity as covariance over all images and locations.

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
