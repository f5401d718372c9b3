"""DiffKD: the student's feature is denoised by a diffusion model of the teacher's, then compared with it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from dskd_mm.arguments import check_arguments
from dskd_mm.diffusion import FeatureDiffusion
from dskd_mm.distillers.base import Distiller, HeadLoss
from dskd_mm.distillers.options import MethodOptions, check_weights
from dskd_mm.features import ChannelAlign, Channels, Pyramid, align_levels, match_levels, per_width
from dskd_mm.functional import mean_squared_error
from dskd_mm.losses import LogitLoss, build_loss
from dskd_mm.registry import MODELS, build
from dskd_mm.sites import NECK_SITES, Site
from dskd_mm.structures import ModelOutputs, TapSpec

DISTANCES = dict(kl=dict(type='dskd_mm.KDLoss', temperature=1.0), dist=dict(type='dskd_mm.DISTLoss'))
PARTS = ('diff', 'autoencoder', 'kd')
DETECTION = dict(pairs=dict(feature={}), weight=5.0)


@dataclass(kw_only=True)
class DiffKDOptions(MethodOptions):
    """Options of :class:`DiffKDDistiller`; defaults by task as in the paper, see there.

    Attributes:
        pairs (dict[str, dict]): What is denoised: 'feature' for the site's feature, 'logits' or the name of one of ``layers``,
            each with arguments of :class:`DenoisedPair` that shall differ from the defaults, and further: ``distance``, one of
            'mse', 'kl', 'dist' or the config of a :class:`~dskd_mm.losses.LogitLoss` (the latter three for logits only);
            ``loss_weights``, ``dict(diff=..., autoencoder=..., kd=...)``.
        distance (str): The distance of logits, unless their pair names another; 'kl' for a single output, which has no
            relations to other classes.
        weight (float): The weight of all losses, unless their pair names others.
    """

    task_defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        'classification': dict(pairs=dict(feature={}, logits={})),
        'segmentation': dict(pairs=dict(logits={}), distance='dist'),
        'dense_detection': DETECTION,
        'two_stage_detection': DETECTION,
        'neck': DETECTION,
    }

    pairs: dict[str, dict] | None = None
    distance: str = 'kl'
    weight: float = 1.0

    def complete(self, site: Site, student: TapSpec, teacher: TapSpec) -> None:
        """See :meth:`MethodOptions.complete`."""
        super().complete(site, student, teacher)
        if self.pairs is None:
            self.pairs = dict(feature={})
        if self.distance == 'dist' and teacher.num_classes < 2:
            self.distance = 'kl'

    def check(self, owner: str, site: Site, student: TapSpec, teacher: TapSpec) -> None:
        """See :meth:`MethodOptions.check`."""
        super().check(owner, site, student, teacher)
        if not self.pairs:
            raise ValueError(f'{owner} expects at least one pair, pairs=dict(feature=dict()), but got {self.pairs!r}.')


class DenoisedPair(nn.Module):
    r"""One pair of maps in DiffKD: learns to denoise the teacher's, and denoises the student's.

    The student's map z = φ(F_s) is mixed with noise, :math:`\gamma z + (1-\gamma)\epsilon` with the γ of a
    :class:`~dskd_mm.diffusion.NoiseAdapter`, denoised in a few DDIM steps, and passed through an output layer. Gradients flow
    through all steps.

    Args:
        student_channels (int | tuple[int, ...]): Channels of the student's map, or of each level.
        teacher_channels (int | tuple[int, ...]): Channels of the teacher's, likewise.
        kernel_size (int): Of denoiser and noise adapter: 3 for maps, 1 for vectors. Defaults to 3.
        norm (str): Norm of denoiser, noise adapter and autoencoder. Defaults to 'BN'.
        autoencoder (dict, optional): ``dict(latent_channels=...)`` to diffuse in a latent of the teacher's map, see
            :class:`~dskd_mm.diffusion.FeatureAutoEncoder`. Defaults to None: no autoencoder.
        align (dict, optional): Arguments of :class:`~dskd_mm.features.ChannelAlign`, φ. Defaults to None: a 1x1 convolution
            without a norm.
        output (dict, optional): The same of the output layer. Defaults to None: a 1x1 convolution and batch norm.
        denoiser (dict, optional): Arguments of :class:`~dskd_mm.diffusion.DiffusionDenoiser`. Defaults to None.
        schedule (dict, optional): Arguments of :class:`~dskd_mm.diffusion.DDIMSchedule`. Defaults to None.
        sampler (dict, optional): Arguments of :class:`~dskd_mm.diffusion.TeacherGuidedSampler`, which is not guided here;
            with another ``noise`` than 'adapter' there is no noise adapter. Defaults to None.
    """

    def __init__(
        self,
        student_channels: Channels,
        teacher_channels: Channels,
        kernel_size: int = 3,
        norm: str = 'BN',
        autoencoder: dict | None = None,
        align: dict | None = None,
        output: dict | None = None,
        denoiser: dict | None = None,
        schedule: dict | None = None,
        sampler: dict | None = None,
    ) -> None:
        super().__init__()
        width = (autoencoder or {}).get('latent_channels', teacher_channels)
        make = partial(build, ChannelAlign, dict(norm=None) | (align or {}))
        self.align = per_width(make, in_channels=student_channels, out_channels=width)
        self.output = per_width(partial(build, ChannelAlign, output), in_channels=width, out_channels=width)
        self.diffusion = FeatureDiffusion(
            teacher_channels,
            kernel_size=kernel_size,
            norm=norm,
            denoiser=denoiser,
            schedule=schedule,
            sampler=dict(noise='adapter') | (sampler or {}),
            autoencoder=autoencoder,
            reduction='sum',
        )

    def forward(
        self, student: Sequence[Tensor], teacher: Sequence[Tensor], generator: torch.Generator
    ) -> tuple[list[Tensor], list[Tensor], dict[str, Tensor]]:
        """Denoise the student's maps.

        Args:
            student (Sequence[Tensor]): (B, C_s, H, W) a level, in the graph.
            teacher (Sequence[Tensor]): (B, C_t, H, W), of the same sizes.
            generator (torch.Generator): Where all noise comes from.

        Returns:
            tuple[list[Tensor], list[Tensor], dict[str, Tensor]]: The denoised maps and what they should be, both of the
            width of the latent, float32; and the losses 'diff' (summed over levels) and 'autoencoder' and the figure
            'gamma', if there are such parts.
        """
        found: dict[str, Tensor] = {}
        pyramid, aligned = align_levels(self.align, student)
        start = aligned.float()
        clean, reconstruction = self.diffusion.encode_prior(Pyramid.pack(teacher).float())
        if reconstruction is not None:
            found['autoencoder'] = reconstruction
        found['diff'] = self.diffusion.loss(clean, pyramid, generator)
        refined, gamma = self.diffusion.denoise(start, pyramid, generator)
        if gamma is not None:
            found['gamma'] = gamma.detach().sum() / max(gamma.numel(), 1)
        pyramid, refined = align_levels(self.output, pyramid.unpack(refined))
        return pyramid.unpack(refined.float()), pyramid.unpack(clean), found


@MODELS.register_module()
class DiffKDDistiller(Distiller):
    r"""Knowledge Diffusion for Distillation (Huang et al., NeurIPS 2023, arXiv 2305.15712).

    A student's feature is taken for a noisy version of the teacher's: a light diffusion model that is trained on the
    teacher's features denoises it, and only the result is compared with the teacher's. For each pair of maps, see
    :class:`DenoisedPair`:

    - ``loss_diffkd_<pair>_diff``: the denoiser learns to predict the noise in the teacher's map, eq. 3;
    - ``loss_diffkd_<pair>_autoencoder``: reconstruction error of the linear autoencoder, if there is one;
    - ``loss_diffkd_<pair>_kd``: distance of the denoised student's map to the teacher's;
    - ``diffkd_<pair>_gamma``: how much of the student's map the start of sampling keeps.

    Which pairs, by task, as in the paper:

    ============== ============================================ ======== ======
    task           pairs                                        distance weight
    ============== ============================================ ======== ======
    classification 'feature' (the map before pooling), k=3      mse      1
    \              'logits', k=1                                kl       1
    detection      'feature' (the neck's levels), k=3           mse      5
    segmentation   'logits' (the map of class logits), k=3      dist     1
    ============== ============================================ ======== ======

    Deviations and reconstructions: the code of detection was never released, so there the weight of 5 is taken for all
    losses, one denoiser serves all levels of the neck, whose losses are summed, its norm is the site's (group norm, as few
    images share a device), and the paper's distillation of box regression, which it does not describe in detail, is left out.
    The autoencoder is off by default; the paper uses a latent of 1,024 for the features of ImageNet's ResNets:
    ``pairs=dict(feature=dict(autoencoder=dict(latent_channels=1024)), logits=dict())``. Distances of logits count what the
    annotations count, so ignored pixels have no distance. Convolutions before a norm have no bias.

    Args:
        student (dict | nn.Module): The student: a host's model. Detectors are distilled at their neck unless a site is given.
        teacher (dict): ``dict(config=..., checkpoint=...)``, see :class:`~dskd_mm.teacher.FrozenTeacher`.
        kwargs: Arguments of :class:`Distiller` and fields of :class:`DiffKDOptions`.

    Raises:
        ValueError: If a pair is not there, or a distance has no meaning for it.
    """

    options_class = DiffKDOptions
    options: DiffKDOptions
    default_sites = NECK_SITES
    compares_with_teacher = True
    learned_losses = ('_diff', '_autoencoder')

    def __init__(self, student: dict | nn.Module, teacher: dict, **kwargs: Any) -> None:
        super().__init__(student, teacher, **kwargs)
        self.pairs = nn.ModuleDict()
        self.distances = nn.ModuleDict()
        self.loss_weights: dict[str, dict[str, float]] = {}
        for name, config in (self.options.pairs or {}).items():
            self._add_pair(name, **(config or {}))
        parts = ('denoiser', 'noise_adapter', 'autoencoder')
        self.renamed_keys = {
            f'pairs.{pair}.{part}.': f'pairs.{pair}.diffusion.{part}.' for pair in self.pairs for part in parts
        }

    def distill(self, student: ModelOutputs, teacher: Any, target: Any, head_loss: HeadLoss) -> dict[str, Tensor]:
        """See :meth:`Distiller.distill`."""
        found: dict[str, Tensor] = {}
        generator = self.noise_generator(student.features[0].device)
        for name, pair in self.pairs.items():
            ours = student.maps(name)
            refined, clean, parts = pair(ours, match_levels(teacher.maps(name), ours), generator)
            if name in self.distances:
                logits, teacher_logits = (Pyramid.pack(maps).reshape(student.logits.shape) for maps in (refined, clean))
                parts['kd'] = self.distances[name](logits, teacher_logits, target, self.teacher_spec.sigmoid)
            else:
                levels = [mean_squared_error(*level) for level in zip(refined, clean, strict=True)]
                parts['kd'] = torch.stack(levels).sum()
            for part, value in parts.items():
                if part in PARTS:
                    found[f'loss_diffkd_{name}_{part}'] = self.loss_weights[name][part] * value
                else:
                    found[f'diffkd_{name}_{part}'] = value
        return found

    def _add_pair(self, name: str, distance: Any = None, loss_weights: dict[str, float] | None = None, **config: Any) -> None:
        """Build one of :attr:`pairs`, by the task's defaults where nothing is said."""
        specs, reader = (self.student_spec, self.teacher_spec), f'pairs.{name} of DiffKDDistiller'
        own, theirs = (spec.describe(name, reader) for spec in specs)
        if distance is None:
            distance = self.options.distance if name == 'logits' else 'mse'
        if distance != 'mse':
            known = isinstance(distance, dict) or distance in DISTANCES
            if name != 'logits' or not known or config.get('autoencoder'):
                raise ValueError(
                    f"distance of the pair {name!r} expects 'mse', or for logits without an autoencoder {sorted(DISTANCES)} or "
                    f'the config of a LogitLoss, but got {distance!r}.'
                )
            loss = distance if isinstance(distance, dict) else DISTANCES[distance]
            try:
                self.distances[name] = build_loss(f'distance of the pair {name!r}', loss, *specs, LogitLoss)
            except TypeError as error:  # as every other pair that there cannot be
                raise ValueError(str(error)) from error
        weights = {**dict.fromkeys(PARTS, self.options.weight), **(loss_weights or {})}
        check_weights(f'the pair {name!r}', weights, dict.fromkeys(PARTS, 1.0), loss_weights)
        self.loss_weights[name] = weights
        check_arguments(DenoisedPair, config, f'pairs.{name}')
        defaults = dict(kernel_size=3 if own.is_map else 1, norm=self.site.norm)
        self.pairs[name] = DenoisedPair(own.channels, theirs.channels, **{**defaults, **config})
