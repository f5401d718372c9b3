"""DiffKD: the student's feature is denoised by a diffusion model of the teacher's, then compared with it."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from dskd_mm.diffusion import (
    DDIMSchedule,
    DiffusionDenoiser,
    FeatureAutoEncoder,
    NoiseAdapter,
    TeacherGuidedSampler,
    draw_like,
    mixing_weights,
    noise_prediction_loss,
    on_levels,
    table_rows,
)
from dskd_mm.diffusion.denoiser import mean_squared_error
from dskd_mm.distillers.base import Distiller, HeadLoss, build, look_up, match_levels, read_weights
from dskd_mm.features import ChannelAlign, Pyramid, per_location
from dskd_mm.guidance import Target
from dskd_mm.losses import LogitLoss
from dskd_mm.registry import MODELS
from dskd_mm.sites import NECK_SITES, Observed
from dskd_mm.utils.arguments import check_arguments

DISTANCES = dict(kl=dict(type='dskd_mm.KDLoss', temperature=1.0), dist=dict(type='dskd_mm.DISTLoss'))
PARTS = ('diff', 'autoencoder', 'kd')


class FeatureDiffusion(nn.Module):
    r"""One pair of maps in DiffKD: learns to denoise the teacher's, and denoises the student's.

    The student's map z = φ(F_s) is mixed with noise, :math:`\gamma z + (1-\gamma)\epsilon` with the γ of a
    :class:`~dskd_mm.diffusion.NoiseAdapter`, denoised in a few DDIM steps, and passed through an output layer. Gradients flow
    through all steps.

    Args:
        student_channels (int): Channels of the student's map.
        teacher_channels (int): Channels of the teacher's.
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
        student_channels: int,
        teacher_channels: int,
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
        width = teacher_channels
        self.autoencoder = None
        if autoencoder:
            self.autoencoder = build(FeatureAutoEncoder, dict(norm=norm) | autoencoder, channels=width)
            width = self.autoencoder.decoder.in_channels
        self.align = build(ChannelAlign, dict(norm=None) | (align or {}), in_channels=student_channels, out_channels=width)
        self.output = build(ChannelAlign, output, in_channels=width, out_channels=width)
        self.schedule = build(DDIMSchedule, schedule)
        self.sampler = build(TeacherGuidedSampler, dict(noise='adapter') | (sampler or {}))
        self.schedule.timesteps(self.sampler.steps, self.sampler.start)  # refuses what does not fit, before any training
        network = dict(kernel_size=kernel_size, norm=norm)
        denoiser = {**network, **(denoiser or {})}
        rows = dict(num_embeddings=table_rows(self.schedule, denoiser.get('num_embeddings')))
        self.denoiser = build(DiffusionDenoiser, {**denoiser, **rows}, channels=width)
        self.noise_adapter = None
        if self.sampler.noise == 'adapter':
            self.noise_adapter = build(NoiseAdapter, network, channels=width)

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
        pyramid, found = Pyramid.of(student), {}
        start = per_location(self.align, Pyramid.pack(student)).float()
        clean = Pyramid.pack(teacher).float()
        if self.autoencoder is not None:
            latent, found['autoencoder'] = self.autoencoder(clean[..., None])
            clean = latent[..., 0].float()
        wanted = pyramid.unpack(clean)
        # One timestep for an image, whatever its level.
        steps = self.schedule.draw_timesteps(len(clean), generator)
        diffs = [
            noise_prediction_loss(self.denoiser, self.schedule, level, draw_like(level, generator), steps) for level in wanted
        ]
        found['diff'] = torch.stack(diffs).sum()
        gamma = None
        if self.noise_adapter is not None:
            gamma = mixing_weights(self.noise_adapter, pyramid, start)
            found['gamma'] = gamma.detach().sum() / max(gamma.numel(), 1)
        denoiser, noise = on_levels(self.denoiser, pyramid), draw_like(start, generator)
        refined = self.sampler(denoiser, self.schedule, start, noise, gamma=gamma)
        return pyramid.unpack(per_location(self.output, refined).float()), wanted, found


@MODELS.register_module()
class DiffKDDistiller(Distiller):
    r"""Knowledge Diffusion for Distillation (Huang et al., NeurIPS 2023, arXiv 2305.15712).

    A student's feature is taken for a noisy version of the teacher's: a light diffusion model that is trained on the
    teacher's features denoises it, and only the result is compared with the teacher's. For each pair of maps, see
    :class:`FeatureDiffusion`:

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
    segmentation   'logits' (the map of class logits), k=3      dist*    1
    ============== ============================================ ======== ======

    \* 'kl' with a single output, which has no relations to other classes.

    Deviations and reconstructions: the code of detection was never released, so there the weight of 5 is taken for all
    losses, one denoiser serves all levels of the neck, whose losses are summed, its norm is what the site advises (group
    norm, as few images share a device), and the paper's distillation of box regression, which it does not describe in
    detail, is left out. The autoencoder is off by default; the paper uses a latent of 1,024 for the features of ImageNet's
    ResNets: ``pairs=dict(feature=dict(autoencoder=dict(latent_channels=1024)), logits=dict())``. Distances of logits count
    what the annotations count, so ignored pixels have no distance. Convolutions before a norm have no bias.

    Args:
        student (dict | nn.Module): The student: a host's model. Detectors are distilled at their neck unless a site is given.
        teacher (dict): ``dict(config=..., checkpoint=...)``, see :class:`~dskd_mm.teacher.FrozenTeacher`.
        pairs (dict[str, dict], optional): What is denoised: 'feature' for the site's feature, 'logits' or the name of one of
            ``layers``, each with arguments of :class:`FeatureDiffusion` that shall differ from the defaults, and further:
            ``distance``, one of 'mse', 'kl', 'dist' or the config of a :class:`~dskd_mm.losses.LogitLoss` (the latter three
            for logits only); ``loss_weights``, ``dict(diff=..., autoencoder=..., kd=...)``. Defaults to None: those of the
            table.
        kwargs: Arguments of :class:`Distiller`: site, layers, distill_losses, warmup, noise_seed, data_preprocessor.

    Raises:
        ValueError: If a pair is not there, or a distance has no meaning for it.
    """

    default_sites = NECK_SITES
    compares_with_teacher = True

    def __init__(self, student: dict | nn.Module, teacher: dict, pairs: dict[str, dict] | None = None, **kwargs: Any) -> None:
        super().__init__(student, teacher, **kwargs)
        if pairs is None:
            pairs = {name: {} for name in self._default_pairs()}
        if not pairs:
            raise ValueError(f'DiffKDDistiller expects at least one pair, pairs=dict(feature=dict()), but got {pairs!r}.')
        self.pairs = nn.ModuleDict()
        self.distances = nn.ModuleDict()
        self.loss_weights: dict[str, dict[str, float]] = {}
        for name, config in pairs.items():
            self._add_pair(name, **(config or {}))

    def distill(
        self, student: Observed, teacher: Observed | None, target: Target | None, head_loss: HeadLoss
    ) -> dict[str, Tensor]:
        """See :meth:`Distiller.distill`."""
        assert teacher is not None
        found: dict[str, Tensor] = {}
        generator = self.noise_generator(student.features[0].device)
        for name, pair in self.pairs.items():
            ours = student.maps(name)
            refined, wanted, parts = pair(ours, match_levels(teacher.maps(name), ours), generator)
            if name in self.distances:
                assert target is not None and student.logits is not None
                logits, opinion = (Pyramid.pack(maps).reshape(student.logits.shape) for maps in (refined, wanted))
                parts['kd'] = self.distances[name](logits, opinion, target, self.teacher_port.sigmoid)
            else:
                levels = [mean_squared_error(*level) for level in zip(refined, wanted, strict=True)]
                parts['kd'] = torch.stack(levels).sum()
            for part, value in parts.items():
                if part in PARTS:
                    found[f'loss_diffkd_{name}_{part}'] = self.loss_weights[name][part] * value
                else:
                    found[f'diffkd_{name}_{part}'] = value
        return found

    def _default_pairs(self) -> tuple[str, ...]:
        return dict(classification=('feature', 'logits'), segmentation=('logits',)).get(self.site.task, ('feature',))

    def _add_pair(
        self, name: str, distance: str | dict | None = None, loss_weights: dict[str, float] | None = None, **config: Any
    ) -> None:
        """Build one of :attr:`pairs`, by the task's defaults where nothing is said."""
        theirs = self.teacher_port
        read = look_up(self.readable, name, f'pairs.{name} of DiffKDDistiller')
        segments = self.site.task == 'segmentation'
        if distance is None:
            distance = 'mse' if name != 'logits' else 'dist' if segments and theirs.num_classes > 1 else 'kl'
        if distance != 'mse':
            known = isinstance(distance, dict) or distance in DISTANCES
            if name != 'logits' or not known or config.get('autoencoder'):
                raise ValueError(
                    f"distance of the pair {name!r} expects 'mse', or for logits without an autoencoder {sorted(DISTANCES)} or "
                    f'the config of a LogitLoss, but got {distance!r}.'
                )
            loss = MODELS.build(distance if isinstance(distance, dict) else DISTANCES[distance])
            if not isinstance(loss, LogitLoss):
                raise ValueError(f'distance of the pair {name!r} expects the config of a LogitLoss, but got {distance!r}.')
            loss.check(theirs.num_classes, theirs.sigmoid)
            self.distances[name] = loss
        weights = dict.fromkeys(PARTS, 5.0 if self.site.task == 'detection' else 1.0)
        self.loss_weights[name] = read_weights(f'the pair {name!r}', weights, loss_weights)
        check_arguments(FeatureDiffusion, config, f'pairs.{name}')
        defaults = dict(kernel_size=3 if read.is_map else 1, norm=self.site.norm)
        self.pairs[name] = FeatureDiffusion(read.student_channels, read.teacher_channels, **{**defaults, **config})
