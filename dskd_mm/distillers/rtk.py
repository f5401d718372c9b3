"""RTK-style attention: each layer of the student learns from the teacher's layers that resemble it most."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dskd_mm.distillers.base import Distiller, HeadLoss
from dskd_mm.distillers.options import MethodOptions
from dskd_mm.features import build_norm, each_level, match_space
from dskd_mm.losses.base import check_weight
from dskd_mm.registry import MODELS
from dskd_mm.sites import NECK_SITES, Site
from dskd_mm.structures import ModelOutputs, TapSpec


@dataclass(kw_only=True)
class RTKOptions(MethodOptions):
    """Options of :class:`RTKDistiller`.

    Attributes:
        embed_dims (int): Length d of queries and keys. Defaults to 128, as in AFD.
        top_k (int): How many of the teacher's layers each layer of the student keeps, at least 2: a single one would have a
            weight of 1 whatever the attention, which nothing would then train. Defaults to 2.
        norm (str): Norm of queries and keys: 'BN', 'SyncBN' or 'GN'. Defaults to 'BN' in classification, as in AFD, and to 'GN'
            elsewhere, segmentation included: batches are small there, and a batch norm would see one vector for each image,
            whatever the size of its maps.
        loss_weight (float): What the loss is multiplied with. Defaults to 200, as AFD's code does on CIFAR-100; a
            reconstruction.
    """

    task_defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = dict(classification=dict(norm='BN'))

    embed_dims: int = 128
    top_k: int = 2
    norm: str = 'GN'
    loss_weight: float = 200.0

    def check(self, owner: str, site: Site, student: TapSpec, teacher: TapSpec) -> None:
        """See :meth:`MethodOptions.check`."""
        super().check(owner, site, student, teacher)
        check_weight(owner, self.loss_weight)
        pyramids = [name for spec in (student, teacher) for name, layer in spec.layers.items() if layer.index == 'all']
        if pyramids:
            raise ValueError(
                f"Each of the layers of {owner} is one map, but layers.{pyramids[0]} has index='all': name its levels one by "
                'one, each by its number.'
            )
        count = len(map_channels(teacher, student))
        if not 2 <= self.top_k <= count:
            found = f'{count} {"named in layers" if student.layers else "level(s) of the site"}'
            raise ValueError(
                f'{owner} keeps the top_k={self.top_k} teacher layers that fit best and expects at least 2 and no more than '
                f"there are, but got {found}. Name several: layers=dict(stage1=dict(student=dict(path='backbone.layer1'), "
                "teacher=dict(path='backbone.layer1')), stage2=...)."
            )


def map_channels(spec: TapSpec, student: TapSpec) -> list[int]:
    """Return the channels of each map that is compared: of ``layers``, else of the levels of the site's feature.

    Args:
        spec (TapSpec): Where a model is tapped.
        student (TapSpec): Where the student is: its levels are known.
    """
    if spec.layers:
        # Each is one map, see RTKOptions.check.
        return [width for layer in spec.layers.values() for width in each_level(layer.channels, 1)]
    return list(each_level(spec.channels, student.level_count))


@MODELS.register_module()
class RTKDistiller(Distiller):
    r"""RTK-style attention with top-k teacher keys, **an approximation** of Representative Teacher Keys.

    Of the paper (Yang, Kao & Huang, arXiv 2206.12788) we know the abstract: attention weighs the teacher's feature maps by
    their similarity to the student's and filters out useless ones. What is not said there is taken from AFD (Ji, Heo & Park,
    AAAI 2021; clovaai/attention-feature-distillation) with the roles changed: the student asks, the teacher's layers are the
    keys, and only the ``top_k`` best keys are kept. See :class:`TeacherKeyAttention`. The loss is ``loss_rtk_attention``;
    ``rtk_top`` tells how much of the attention the best key has.

    AFD trains with KD of the logits beside it, weight 0.9 and T = 4: ``distill_losses`` add it.

    It needs several layers. In classification and segmentation name them, one of the student and one of the teacher under each
    name. In detection the levels of the neck are taken where none is named; their scales differ, so that stages of the backbone
    fit better. Every one of the student's is compared with every one of the
    teacher's, whatever the pairs:

    .. code-block:: python

        layers=dict(  # of two ResNets; 'backbone.layer1' is the output of the first stage
            stage1=dict(student=dict(path='backbone.layer1'), teacher=dict(path='backbone.layer1')),
            stage2=dict(student=dict(path='backbone.layer2'), teacher=dict(path='backbone.layer2')),
            stage3=dict(student=dict(path='backbone.layer3'), teacher=dict(path='backbone.layer3')),
        )

    A single level of a neck is named by its index: ``dict(path='neck', index=0)``. Layers have to yield maps
    (B, C, H, W): of one location, or of a vector, nothing can be learnt, for its normalised value is always 1.

    Args:
        student (dict | nn.Module): The student: a host's model.
        teacher (dict): ``dict(config=..., checkpoint=...)``, see :class:`~dskd_mm.teacher.FrozenTeacher`.
        kwargs: Arguments of :class:`Distiller` and fields of :class:`RTKOptions`. Without ``layers`` the levels of the site's
            feature are compared; losses of ``distill_losses`` may read ``layers`` as well.

    Raises:
        ValueError: If there are fewer layers than keys to keep, or an argument is out of its range.
    """

    options_class = RTKOptions
    options: RTKOptions
    default_sites = NECK_SITES
    compares_with_teacher = True

    def __init__(self, student: dict | nn.Module, teacher: dict, **kwargs: Any) -> None:
        super().__init__(student, teacher, **kwargs)
        options = self.options
        own, theirs = (map_channels(spec, self.student_spec) for spec in (self.student_spec, self.teacher_spec))
        self.attention = TeacherKeyAttention(own, theirs, options.embed_dims, options.top_k, options.norm)

    def distill(self, student: ModelOutputs, teacher: Any, target: Any, head_loss: HeadLoss) -> dict[str, Tensor]:
        """See :meth:`Distiller.distill`."""
        loss, attention = self.attention(self._maps(student), self._maps(teacher))
        return dict(loss_rtk_attention=self.options.loss_weight * loss, rtk_top=attention.detach().amax(dim=2).mean())

    def _maps(self, seen: ModelOutputs) -> list[Tensor]:
        return [maps[0] for name, maps in seen.layers.items()] if seen.layers else seen.features


class TeacherKeyAttention(nn.Module):
    r"""How far the student's attention maps are from those of the teacher's layers that resemble them.

    With :math:`h_s`, :math:`h_t` the maps of layer s of the student and t of the teacher, and d the length of queries and
    keys:

    - queries :math:`q_s = norm(W_s\,GAP(h_s))`, keys :math:`k_t = ReLU(norm(W_t\,GAP(h_t)))`;
    - attention :math:`a_{st} = softmax_t((\langle q_s, norm(B_t k_t)\rangle + p_s \cdot p_t)/\sqrt d)`, of which the ``top_k``
      highest of each sample and s are kept and divided by their sum. :math:`B_t` is a bilinear map for each of the teacher's
      layers, and :math:`p` are learnt vectors of each layer;
    - values :math:`v(h)`: the mean over channels of :math:`h^2`, flattened and divided by its L2 norm; the student's is
      resized to the teacher's size before it is flattened;
    - loss :math:`\sum_s mean_b \sum_t a_{st}\,mean_{hw}(v_s - v_t)^2`.

    All but the kept keys follows AFD, whose queries are the teacher's and whose keys are the student's. The loss is a mean
    over a map's locations of differences between vectors of length 1: it falls with the resolution.

    Args:
        student_channels (Sequence[int]): Channels of each of the student's layers.
        teacher_channels (Sequence[int]): The same of the teacher's.
        embed_dims (int): Length d of queries and keys. Defaults to 128.
        top_k (int): How many keys are kept. Defaults to 2.
        norm (str): Norm of queries and keys: 'BN', 'SyncBN' or 'GN'. Defaults to 'BN'.
    """

    def __init__(
        self,
        student_channels: Sequence[int],
        teacher_channels: Sequence[int],
        embed_dims: int = 128,
        top_k: int = 2,
        norm: str = 'BN',
    ) -> None:
        super().__init__()
        self.top_k = top_k

        def linear(channels: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(channels, embed_dims, 1, bias=False), build_norm(norm, embed_dims))

        self.queries = nn.ModuleList([linear(channels) for channels in student_channels])
        self.keys = nn.ModuleList([nn.Sequential(*linear(channels), nn.ReLU(inplace=True)) for channels in teacher_channels])
        self.bilinear = nn.ModuleList([linear(embed_dims) for _ in teacher_channels])
        self.student_position = nn.Parameter(torch.empty(len(student_channels), embed_dims))
        self.teacher_position = nn.Parameter(torch.empty(len(teacher_channels), embed_dims))
        nn.init.xavier_normal_(self.student_position)
        nn.init.xavier_normal_(self.teacher_position)

    def forward(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Compare S maps of a student with T of its teacher.

        Args:
            student (Sequence[Tensor]): The student's, (B, C_s, H, W) each, of any sizes, in the graph.
            teacher (Sequence[Tensor]): The teacher's, (B, C_t, H', W') each.

        Returns:
            tuple[Tensor, Tensor]: The loss, a scalar, and the attention (B, S, T), of which ``top_k`` of each row are not 0.

        Raises:
            ValueError: If batch norms are to be trained on a single image.
        """
        if self.training and len(student[0]) == 1 and any(isinstance(module, nn.BatchNorm2d) for module in self.modules()):
            raise ValueError(
                'The batch norms of RTKDistiller see one vector for each image and expect at least 2 images in a batch, but '
                "got 1: use norm='GN' (or 'SyncBN' on several devices), or a larger batch."
            )
        with torch.autocast(device_type=student[0].device.type, enabled=False):
            ours, theirs = [h.float() for h in student], [h.float() for h in teacher]
            attention = self._attend(ours, theirs)
            rows = [[(value(h, g.shape[2:]) - value(g)).square().mean(dim=1) for g in theirs] for h in ours]
            difference = torch.stack([torch.stack(row, dim=1) for row in rows], dim=1)
        return (attention * difference).sum(dim=(1, 2)).mean(), attention

    def _attend(self, student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
        """Return the attention (B, S, T)."""

        def embed(modules: nn.ModuleList, vectors: Sequence[Tensor]) -> list[Tensor]:
            return [module(vector) for module, vector in zip(modules, vectors, strict=True)]

        def pool(maps: Sequence[Tensor]) -> list[Tensor]:
            return [h.mean(dim=(2, 3), keepdim=True) for h in maps]

        queries = torch.stack(embed(self.queries, pool(student)), dim=1).flatten(2)
        keys = torch.stack(embed(self.bilinear, embed(self.keys, pool(teacher))), dim=1).flatten(2)
        logits = queries @ keys.transpose(1, 2) + self.student_position @ self.teacher_position.T
        attention = (logits / math.sqrt(queries.shape[2])).softmax(dim=2)
        kept = attention.topk(self.top_k, dim=2).indices
        attention = attention * torch.zeros_like(attention).scatter_(2, kept, 1.0)
        return attention / attention.sum(dim=2, keepdim=True)


def value(feature: Tensor, size: torch.Size | None = None) -> Tensor:
    """Return a map's normalised energy: the mean over channels of its square, flattened, of length 1.

    Args:
        feature (Tensor): Maps (B, C, H, W).
        size (tuple[int, int], optional): Height and width to resize it to. Defaults to None: its own.

    Returns:
        Tensor: (B, H * W).
    """
    energy = feature.square().mean(dim=1, keepdim=True)
    return F.normalize((energy if size is None else match_space(energy, size)).flatten(1), dim=1)
