"""SoKD: the teacher's feature is augmented towards the student, and compared once more where both see something
distinctive."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dskd_mm.distillers.base import Distiller, HeadLoss
from dskd_mm.distillers.options import MethodOptions
from dskd_mm.features import ChannelAlign, FeatureAugmentation, build_norm, level_modules, per_width
from dskd_mm.functional import mean_squared_error
from dskd_mm.registry import MODELS, build
from dskd_mm.sites import NECK_SITES, Site
from dskd_mm.structures import ModelOutputs, TapSpec


@dataclass(kw_only=True)
class SoKDOptions(MethodOptions):
    """Options of :class:`SoKDDistiller`.

    Attributes:
        search_iters (int): For how many iterations the policy is trained; 0 keeps its initial values. Defaults to 1000.
        adapter (dict): Arguments of :class:`FeatureAdapter`. Its norm is the site's unless given ('GN' at pyramids, 'BN'
            elsewhere), and it ends in a ReLU unless the site is a neck, whose features have both signs. Defaults to none.
        augment (dict | False): Arguments of :class:`~dskd_mm.features.FeatureAugmentation`; False leaves the teacher's feature
            as it is. Defaults to none.
        detector (dict): Arguments of :class:`AreaDetector`. Defaults to none.
        loss_weights (dict): Weights of 'feature', 'detection' (the paper's λ) and 'area' (its β). Without the latter two no
            areas are sought. Those not named are 1.
    """

    losses: ClassVar[Mapping[str, float]] = dict(feature=1.0, detection=1.0, area=1.0)

    search_iters: int = 1000
    adapter: dict | None = None
    augment: dict | Literal[False] | None = None
    detector: dict | None = None
    loss_weights: Any = None

    def check(self, owner: str, site: Site, student: TapSpec, teacher: TapSpec) -> None:
        """See :meth:`MethodOptions.check`."""
        super().check(owner, site, student, teacher)
        check_map(student, 'student')
        weights = self.loss_weights
        if self.search_iters < 0 or not any(weights.values()):
            raise ValueError(
                f'{owner} expects search_iters >= 0 and a positive loss weight, but got '
                f'search_iters={self.search_iters}, loss_weights={weights}.'
            )
        if weights['area'] and not weights['detection']:
            raise ValueError(
                f"The heads that find the areas of {owner} learn from the loss 'detection' alone, but got "
                f"loss_weights={weights}: set 'area' to 0 as well, or 'detection' to more than 0."
            )


@MODELS.register_module()
class SoKDDistiller(Distiller):
    r"""Student-Oriented Teacher Knowledge Refinement (Shen, Huang, Zhu, Fan & Zhang, arXiv 2409.18785), **an approximation**.

    No code of the authors is known to us; this follows a summary of the paper and a development repository. In a training
    step:

    1. the student's feature is adapted to the teacher's channels: :class:`FeatureAdapter`;
    2. the teacher's feature is augmented: :class:`~dskd_mm.features.FeatureAugmentation` (DAFA). During the first
       ``search_iters`` iterations its policy learns to bring the teacher's feature closer to the student's; afterwards it
       stays as it is and is still drawn from;
    3. ``loss_sokd_feature``: the mean squared error between both (FitNet, which the paper combines its method with);
    4. ``loss_sokd_detection``, L_D: the mean squared errors between what shared heads find in both, :class:`AreaDetector`
       (DAM);
    5. ``loss_sokd_area``, L_DA: the mean squared error between both features, masked by the areas that the heads find in the
       student's.

    The levels of a pyramid share all modules, and their losses are summed. At a detector the site is its neck unless another
    one is given. Health figures are logged beside: ``sokd_area`` (share of locations that lie in an area) and
    ``sokd_probability`` (how often a chosen operator is applied).

    Reconstructed, for the sources are silent: the weights of the losses, the length of the search, the policy's gradient (see
    :class:`~dskd_mm.features.FeatureAugmentation`) and the boxes of the areas (see :class:`AreaDetector`); that the augmented
    teacher's feature enters all three losses; that gradients of L_D reach student and heads on both of its sides. The heads
    learn from L_D alone, which does not keep them from becoming constant.

    Args:
        student (dict | nn.Module): The student: a host's model.
        teacher (dict): ``dict(config=..., checkpoint=...)``, see :class:`~dskd_mm.teacher.FrozenTeacher`.
        kwargs: Arguments of :class:`Distiller` and fields of :class:`SoKDOptions`.

    Raises:
        ValueError: If the feature is a vector, which has no areas; if an argument is out of its range, or nothing would train
            the areas' heads.
    """

    options_class = SoKDOptions
    options: SoKDOptions
    default_sites = NECK_SITES
    compares_with_teacher = True

    def __init__(self, student: dict | nn.Module, teacher: dict, **kwargs: Any) -> None:
        super().__init__(student, teacher, **kwargs)
        options, channels = self.options, self.teacher_spec.channels
        adapter = dict(norm=self.site.norm, final_relu=bool(self.teacher_spec.classifiers)) | (options.adapter or {})
        make = partial(build, FeatureAdapter, adapter)
        self.adapter = per_width(make, in_channels=self.student_spec.channels, out_channels=channels)
        self.augment = None if options.augment is False else build(FeatureAugmentation, options.augment)
        has_detector = options.loss_weights['detection']
        self.detector = per_width(partial(build, AreaDetector, options.detector), channels=channels) if has_detector else None

    def load_teacher(self) -> None:
        """See :meth:`Distiller.load_teacher`.

        Raises:
            ValueError: If the teacher's feature is a vector.
        """
        super().load_teacher()
        check_map(self.teacher_spec, 'teacher')

    def distill(self, student: ModelOutputs, teacher: Any, target: Any, head_loss: HeadLoss) -> dict[str, Tensor]:
        """See :meth:`Distiller.distill`."""
        weights = self.options.loss_weights
        adapters = level_modules(self.adapter, len(student.features))
        adapted = [adapter(level).float() for adapter, level in zip(adapters, student.features, strict=True)]
        refined = self._refine(teacher.features, adapted)
        losses: dict[str, Tensor] = {}
        if weights['feature']:
            losses['loss_sokd_feature'] = weights['feature'] * total(map(mean_squared_error, adapted, refined))
        if self.detector is not None:
            detectors: list[Any] = level_modules(self.detector, len(adapted))
            found = [detector(level) for detector, level in zip(detectors, adapted, strict=True)]
            expected = [detector(level) for detector, level in zip(detectors, refined, strict=True)]
            pairs = [pair for level in zip(found, expected, strict=True) for pair in zip(*level, strict=True)]
            losses['loss_sokd_detection'] = weights['detection'] * total(mean_squared_error(*pair) for pair in pairs)
            if weights['area']:
                masks = [detectors[0].mask(*level) for level in found]
                masked = [mean_squared_error(m * a, m * b) for m, a, b in zip(masks, adapted, refined, strict=True)]
                losses['loss_sokd_area'] = weights['area'] * total(masked)
                losses['sokd_area'] = torch.cat([(mask > 0).float().flatten() for mask in masks]).mean()
        if self.augment is not None:
            losses['sokd_probability'] = self.augment.probability
        return losses

    def _refine(self, teacher: Sequence[Tensor], student: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the teacher's maps, augmented; the policy learns from them while it is searched."""
        if self.augment is None:
            return teacher
        generator = self.noise_generator(teacher[0].device)
        if self.training and self.step_index < self.options.search_iters:
            return self.augment.search(teacher, student, generator)
        with torch.no_grad():
            return self.augment(teacher, generator)


class FeatureAdapter(nn.Module):
    """Maps the student's feature to the teacher's: a 1x1 convolution and a norm, then twice a 3x3 convolution, norm and ReLU.

    The first norm is ours: the source does not mention one.

    The resizing convolution of the source changes the resolution as well; here the teacher's maps have been brought to the
    student's resolution before. It is as wide as the teacher, with 75 million parameters at 2048 channels, while training.

    Args:
        in_channels (int): Channels of the student.
        out_channels (int): Channels of the teacher.
        norm (str, optional): 'BN', 'SyncBN', 'GN' or None. Defaults to 'BN'.
        final_relu (bool): Whether it ends in a ReLU, as in the source: right for a teacher's feature that ends in one.
            Defaults to True.
    """

    def __init__(self, in_channels: int, out_channels: int, norm: str | None = 'BN', final_relu: bool = True) -> None:
        super().__init__()

        def block() -> list[nn.Module]:
            convolution = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=norm is None)
            return [convolution, build_norm(norm, out_channels), nn.ReLU(inplace=True)]

        blocks = [*block(), *block()]
        self.layers = nn.Sequential(
            ChannelAlign(in_channels, out_channels, norm=norm), *(blocks if final_relu else blocks[:-1])
        )

    def forward(self, feature: Tensor) -> Tensor:
        """Map (B, in_channels, H, W) to (B, out_channels, H, W)."""
        return self.layers(feature)


class AreaDetector(nn.Module):
    """Finds distinctive areas of a feature: the heads of SoKD's DAM, and boxes from what they say.

    Three heads, each a 3x3 convolution, a ReLU and a 1x1 convolution: a heatmap (through a sigmoid), sizes and offsets. Areas
    are read off as in CenterNet (Zhou et al. 2019), which the source resembles: the ``num_areas`` highest peaks among their
    3x3 neighbours, each with a box about its location plus offset, of its size.

    Reconstructed: sizes (width, height) and offsets (x, y) are in locations of the map, as they come; a box has at least the
    size of one location and its centre lies on the map, so none is ever empty. The width of the heads is CenterNet's.

    Args:
        channels (int): Channels of the feature.
        hidden_channels (int): Channels between a head's convolutions. Defaults to 64.
        num_areas (int): The number P of areas in a map. Defaults to 8.

    Raises:
        ValueError: If no area is asked for.
    """

    def __init__(self, channels: int, hidden_channels: int = 64, num_areas: int = 8) -> None:
        super().__init__()
        if num_areas < 1:
            raise ValueError(f'num_areas of AreaDetector must be at least 1, but got {num_areas}.')
        self.num_areas = num_areas

        def head(outputs: int) -> nn.Sequential:
            return nn.Sequential(
                nn.Conv2d(channels, hidden_channels, 3, padding=1),
                nn.ReLU(inplace=True),
                nn.Conv2d(hidden_channels, outputs, 1),
            )

        self.heat, self.size, self.offset = head(1), head(2), head(2)

    def forward(self, feature: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Apply the heads to maps (B, C, H, W).

        Returns:
            tuple[Tensor, Tensor, Tensor]: Heatmap in (0, 1), (B, 1, H, W); width and height, and x and y of the offset, (B, 2,
            H, W) each. All float32.
        """
        return self.heat(feature).float().sigmoid(), self.size(feature).float(), self.offset(feature).float()

    @torch.no_grad()
    def mask(self, heat: Tensor, size: Tensor, offset: Tensor) -> Tensor:
        """Count in how many areas each location lies.

        Args:
            heat (Tensor): Heatmap (B, 1, H, W).
            size (Tensor): Width and height (B, 2, H, W).
            offset (Tensor): Offset along x and y (B, 2, H, W).

        Returns:
            Tensor: (B, 1, H, W), without a graph.
        """
        height, width = heat.shape[2:]
        is_peak = heat == F.max_pool2d(heat, 3, stride=1, padding=1)
        # What is no peak stays below every peak; a map may have fewer peaks than areas.
        score, index = heat.masked_fill(~is_peak, -1.0).flatten(1).topk(min(self.num_areas, height * width))
        chosen = index[:, None].expand(-1, 2, -1)
        half = size.flatten(2).gather(2, chosen).clamp(min=1) / 2
        shift = offset.flatten(2).gather(2, chosen)

        def spans(axis: int, position: Tensor, length: int) -> Tensor:
            """Return which rows or columns lie in each box, (B, P, length)."""
            centre = (position + shift[:, axis]).clamp(0, length - 1)
            return (torch.arange(length, device=heat.device) - centre[..., None]).abs() <= half[:, axis, :, None]

        columns, rows = spans(0, index % width, width), spans(1, index.div(width, rounding_mode='floor'), height)
        inside = rows[..., None] & columns[:, :, None] & (score > 0)[:, :, None, None]
        return inside.sum(dim=1, keepdim=True).float()


def check_map(spec: TapSpec, owner: str) -> None:
    """Refuse a feature without height and width.

    Raises:
        ValueError: If it is a vector.
    """
    if not spec.is_map:
        raise ValueError(
            f"SoKDDistiller shears feature maps and seeks areas in them, but the {owner}'s feature, the {spec.io} of "
            f'{spec.features[0]!r}, is one vector for each image or proposal. Tap a map: '
            "site=dict(feature=dict(path='backbone...', channels=...)) (teacher_feature for the teacher) in classification, "
            "site=dict(type='dskd_mm.NeckSite') in detection."
        )


def total(values: Iterable[Tensor]) -> Tensor:
    """Return the sum of scalars."""
    return torch.stack(list(values)).sum()
