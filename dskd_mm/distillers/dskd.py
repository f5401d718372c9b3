"""DSKD: teacher-guided student diffusion self-distillation."""

from contextlib import nullcontext
from typing import Any, Literal

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
from dskd_mm.distillers.base import Distiller, HeadLoss, build, build_loss, loss_class, main_classes, read_weights
from dskd_mm.distributed import std_over_ranks
from dskd_mm.features import ChannelAlign, Pyramid, Window, per_location
from dskd_mm.guidance import ClassifierJudge, HeadJudge, Judge, Target, TeacherClassifier
from dskd_mm.losses import BoxLoss, FeatureLoss, KDLoss, LogitLoss, LSHDistillLoss
from dskd_mm.losses.base import check_temperature
from dskd_mm.registry import MODELS
from dskd_mm.sites import Observed
from dskd_mm.utils.arguments import arguments_of

LOSSES = dict(diff=1.0, lsh=1.0, anchor=1.0, virtual=1.0, logit=1.0, channel=0.0)


@MODELS.register_module()
class DSKDDistiller(Distiller):
    r"""Teacher-Guided Student Self-Knowledge Distillation Using Diffusion Model (arXiv 2602.02107).

    A light diffusion model is trained on features and denoises the student's; the *teacher's classifier* guides its sampling,
    so that the denoised feature carries the teacher's knowledge; a locality-sensitive hashing loss pulls the student's feature
    towards its own denoised version. In a training step:

    1. z = φ(F_s), the student's feature in the teacher's channels;
    2. ``loss_dskd_anchor``: the frozen teacher's classifier on z should say what is wanted. It ties φ to the teacher's space
       (ours, not in the paper: without it φ is held by its own self-target alone and can drift);
    3. ``loss_dskd_diff``: the denoiser learns to predict the noise in the prior's features;
    4. ẑ: z is noised and denoised again in a few guided DDIM steps, outside of the graph;
    5. ``loss_dskd_lsh``: the hash of z should be that of ẑ;
    6. ``loss_dskd_virtual``: the student's own logits should follow the teacher classifier's opinion of ẑ (ours);
    7. ``loss_dskd_logit``: and the teacher's own logits;
    8. ``loss_dskd_channel``: and a segmenter's logits as maps, each channel a distribution over its locations (CWD, Shu et al.
       2021): the former say what is at a location, these where a class is;
    9. ``loss_dskd_box``: likewise a detector's boxes, which no classifier could teach.

    How predictions follow the teacher's own (2 and 7) is said by ``imitation``: by Hinton's divergence (2015), or for images
    by what it says of the true class and what it says of the others as two matters of their own (DKD, Zhao et al. 2022). The
    virtual teacher (6) is followed by Hinton's: what a sampled feature says of unlikely classes is noise rather than knowledge.

    With an autoencoder there is ``loss_dskd_autoencoder``, its reconstruction error, with a weight of 1.

    Health figures are logged beside: ``dskd_acc_start`` and ``dskd_acc_denoised`` (how often the teacher's classifier names
    the annotated class on z and on ẑ), ``dskd_bits`` (share of hash bits that agree), ``dskd_std`` (spread of the prior's
    features) and ``dskd_gamma`` (with a noise adapter).

    The paper's text leaves several choices open; each is an argument here, and docs/en/ablations.md shows what those that
    were tried gave.
    With ``prior='student'``, ``target='label'`` and ``loss_weights=dict(logit=0)`` the teacher never runs: only its
    classification layer is loaded.

    Args:
        student (dict | nn.Module): The student: a host's model.
        teacher (dict): ``dict(config=..., checkpoint=...)``, see :class:`~dskd_mm.teacher.FrozenTeacher`.
        prior (str): What the denoiser is trained on: 'student' for z itself (detached), 'teacher' for the teacher's feature.
            Defaults to 'student'.
        target (str, optional): What guidance and anchor aim at: 'label' for the ground truth, 'soft' for the teacher's own
            prediction, 'local' for the teacher's own prediction at every location of its map, to which its classifier is
            applied as a 1x1 convolution (a class activation map). Defaults to None: 'soft' where there is a linear
            classifier, else 'label'.
        temperature (float, optional): Softens predictions that follow one another, unless ``imitation`` names another. Defaults
            to None: 4, or what the task's site advises.
        imitation (dict, optional): How predictions follow the teacher's own in the anchor (with 'soft' and 'local' targets)
            and in the logit loss: the config of a :class:`~dskd_mm.losses.LogitLoss`. Defaults to None:
            :class:`~dskd_mm.losses.DKDLoss` for images of exclusive classes, :class:`~dskd_mm.losses.KDLoss` elsewhere.
        warmup (int, optional): Iterations over which all losses of the distillation grow linearly from 0 to their weight,
            ``distill_losses`` among them, but those by which diffusion and autoencoder learn. Defaults to None: what the site
            advises, 200 for images that follow the teacher's own predictions, and 0 elsewhere.
        detach (bool): Whether ẑ is a fixed target, sampled without a graph; otherwise gradients flow through the sampler.
            Defaults to True.
        guidance_unit (str): What the sampler's strength means, see :class:`~dskd_mm.guidance.ClassifierGuidance`. Defaults to
            'logit'.
        normalize (bool): Whether features enter the diffusion divided by the running standard deviation of the prior's, for
            the noise has unit variance. Defaults to True.
        window (int | False, optional): Where there is a prediction for every location (dense detection, segmentation), all
            terms see only a window of so many locations high and wide of each level, around one of a class that is drawn for
            each image, level and step. It bounds the cost of large maps; levels of up to four windows are taken whole. False
            for all of every map. Defaults to None: what the site advises, 32 there and no window elsewhere.
        guided_classes (int | False, optional): How many classes for each image of the batch guidance regards at most, besides
            the background where there is an output for it: those annotated in the batch first, then those of which the target
            is surest. It bounds guidance where a classifier of many classes costs more than the denoiser; classes that are not
            there have little to say in it. No other term is concerned. False for all. Defaults to None: what the site advises,
            4 in dense detection and all elsewhere.
        sampling_interval (int): Every so many-th iteration ẑ is sampled, and the losses that rest on it are taken; the denoiser
            learns in each. Defaults to 1.
        compile (bool | dict): Whether denoiser and sampler are compiled, or arguments of :func:`torch.compile`, such as
            ``dict(backend='inductor', mode='reduce-overhead')``. Defaults to False.
        align (dict, optional): Arguments of :class:`~dskd_mm.features.ChannelAlign`, φ. Defaults to None.
        denoiser (dict, optional): Arguments of :class:`~dskd_mm.diffusion.DiffusionDenoiser`. Its kernel size is 3 for maps and
            1 for vectors unless given, its norm that of the task's site, its table of timesteps long enough for the schedule; a
            noise adapter takes the same norm. Defaults to None.
        schedule (dict, optional): Arguments of :class:`~dskd_mm.diffusion.DDIMSchedule`. Defaults to None.
        sampler (dict, optional): Arguments of :class:`~dskd_mm.diffusion.TeacherGuidedSampler`; ``scale=0`` turns guidance off.
            Those not named keep their default, or what the task's site advises. With ``noise='adapter'`` a
            :class:`~dskd_mm.diffusion.NoiseAdapter` is built. Defaults to None.
        autoencoder (dict | False, optional): ``dict(latent_channels=...)`` to diffuse wide features in a narrow latent; the
            guidance is pulled back through its decoder. False for none. Defaults to None: what the site advises, a latent of
            256 for the box heads of two-stage detectors and none elsewhere.
        lsh (dict, optional): Arguments of :class:`~dskd_mm.losses.LSHDistillLoss`. Defaults to None.
        loss_weights (dict, optional): Weights of 'diff', 'lsh', 'anchor', 'virtual', 'logit', 'channel' and 'box'. A weight of
            0 skips the work, too, but for 'diff': the denoiser then stays untrained, yet still denoises. The diffusion is left
            out if both 'lsh' and 'virtual' are 0. Those not named keep their default: 1, or what the task's site advises; for
            'box' the weight of 'logit', for 'channel' 3 times that in segmentation and 0 elsewhere.
        kwargs: Arguments of :class:`Distiller`: site, layers, distill_losses, noise_seed, data_preprocessor.

    Raises:
        ValueError: If a switch has an unknown value, or a combination cannot train.
    """

    # All that pulls the student; the diffusion learns from the first iteration on.
    warmed_losses = tuple(f'loss_dskd_{name}' for name in ('anchor', 'lsh', 'virtual', 'logit', 'channel', 'box'))
    feature_std: Tensor

    def __init__(
        self,
        student: dict | nn.Module,
        teacher: dict,
        prior: str = 'student',
        target: str | None = None,
        temperature: float | None = None,
        imitation: dict | None = None,
        warmup: int | None = None,
        detach: bool = True,
        guidance_unit: str = 'logit',
        normalize: bool = True,
        window: int | Literal[False] | None = None,
        guided_classes: int | Literal[False] | None = None,
        sampling_interval: int = 1,
        compile: bool | dict = False,
        align: dict | None = None,
        denoiser: dict | None = None,
        schedule: dict | None = None,
        sampler: dict | None = None,
        autoencoder: dict | Literal[False] | None = None,
        lsh: dict | None = None,
        loss_weights: dict | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(student, teacher, warmup=warmup or 0, **kwargs)
        advice = self.site.defaults
        target = advice.get('target', 'soft') if target is None else target
        temperature = advice.get('temperature', 4.0) if temperature is None else temperature
        for name, value, known in (
            ('prior', prior, ('student', 'teacher')),
            ('target', target, ('label', 'soft', 'local')),
            ('guidance_unit', guidance_unit, ('logit', 'gradient')),
        ):
            if value not in known:
                raise ValueError(f'{name} of DSKDDistiller must be one of {known}, but got {value!r}.')
        weights = {**LOSSES, **advice.get('loss_weights', {})}
        # Both are the teacher's own word: what is teacher-free without the one is so without the other.
        logit = {**weights, **(loss_weights or {})}['logit']
        weights |= dict(box=logit, channel=weights['channel'] * logit)
        self.loss_weights = read_weights(type(self).__name__, weights, loss_weights)
        follows = self.loss_weights['logit'] or (self.loss_weights['anchor'] and target != 'label')
        if warmup is None and follows:
            self.warmup = advice.get('warmup', 0)
        if sampling_interval < 1:
            raise ValueError(f'sampling_interval of DSKDDistiller must be at least 1, but got {sampling_interval}.')
        window = advice.get('window') if window is None else window
        guided_classes = advice.get('guided_classes') if guided_classes is None else guided_classes
        for name, bound, unit in (('window', window, 'location'), ('guided_classes', guided_classes, 'class')):
            if bound is True or (bound is not None and bound is not False and bound < 1):
                raise ValueError(f'{name} of DSKDDistiller must be at least one {unit}, or False, but got {bound}.')
        has_locations = self.student_port.is_map and not self.student_port.is_pooled and self.teacher_port.classifiers
        if window and not has_locations:
            raise ValueError(
                f'window={window} expects a classifier at every location, as in dense detection and segmentation, but '
                f'{type(self.site).__name__} has none here: leave window out.'
            )
        if guided_classes and not self.teacher_port.classifiers:
            raise ValueError(
                f'guided_classes={guided_classes} expects a linear classifier, but {type(self.site).__name__} has none: leave '
                'guided_classes out.'
            )
        if not self.teacher_port.classifiers and (
            target != 'label' or self.loss_weights['virtual'] or self.loss_weights['logit']
        ):
            raise ValueError(
                f"{type(self.site).__name__} has no linear classifier and expects target='label' and "
                f'loss_weights=dict(virtual=0, logit=0), but got target={target!r}, loss_weights={self.loss_weights}.'
            )
        self.prior = prior
        self.target = target
        self.temperature = check_temperature(self, temperature)
        self.imitation = self._build_imitation(imitation)
        self.virtual_imitation = KDLoss(temperature)
        self.box_imitation = BoxLoss()
        self.channel_imitation = None
        if self.loss_weights['channel']:
            # Weight and temperature are its authors', for the logits of segmenters.
            config = dict(type='dskd_mm.CWDLoss', on='logits', temperature=4.0, loss_weight=self.loss_weights['channel'])
            loss = build_loss('loss_weights.channel', config, self.student_port, self.teacher_port, self.readable)
            assert isinstance(loss, FeatureLoss)
            self.channel_imitation = loss
        self.detach = detach
        self.guidance_unit = guidance_unit
        self.normalize = normalize
        self.window = window or None
        self.guided_classes = guided_classes or None
        self.sampling_interval = sampling_interval

        channels = self.teacher_port.channels
        self.align = build(ChannelAlign, align, in_channels=self.student_port.channels, out_channels=channels)
        self.lsh = build(LSHDistillLoss, lsh, in_channels=channels) if self.loss_weights['lsh'] else None
        self.register_buffer('feature_std', torch.zeros(()))
        if not self.samples:
            return
        width = channels
        self.autoencoder = None
        advised = advice.get('autoencoder')
        if autoencoder is None and advised and advised['latent_channels'] < channels:
            autoencoder = advised
        if autoencoder:
            self.autoencoder = build(FeatureAutoEncoder, dict(norm=self.site.norm) | autoencoder, channels=channels)
            width = self.autoencoder.decoder.in_channels
        kernel = dict(kernel_size=3 if self.student_port.is_map else 1)
        denoiser = {**kernel, 'norm': self.site.norm, **advice.get('denoiser', {}), **(denoiser or {})}
        self.schedule = build(DDIMSchedule, schedule)
        self.sampler = build(TeacherGuidedSampler, {**advice.get('sampler', {}), **(sampler or {})})
        self.schedule.timesteps(self.sampler.steps, self.sampler.start)  # refuses what does not fit, before any training
        rows = dict(num_embeddings=table_rows(self.schedule, denoiser.get('num_embeddings')))
        self.denoiser = build(DiffusionDenoiser, {**denoiser, **rows}, channels=width)
        self.noise_adapter = None
        if self.sampler.noise == 'adapter':
            weights = self.loss_weights
            if detach:
                raise ValueError(
                    "noise='adapter' has to be trained through the sampler, but detach=True samples without a graph: set "
                    "detach=False, or noise='schedule'."
                )
            if not weights['virtual'] and isinstance(self.lsh, LSHDistillLoss) and not self.lsh.magnitude:
                raise ValueError(
                    "noise='adapter' has no loss to be trained by: the bits of a hash have no gradient. Set the loss weight "
                    "'virtual', or lsh=dict(magnitude=...), or noise='schedule'."
                )
            if sampling_interval > 1:
                raise ValueError(
                    f"noise='adapter' is trained through the sampler, in every iteration, but got sampling_interval="
                    f"{sampling_interval}: set it to 1, or noise='schedule'."
                )
            self.noise_adapter = build(NoiseAdapter, {**kernel, 'norm': denoiser['norm']}, channels=width)
        if compile:
            for module in (self.denoiser, self.sampler):
                module.compile(**({} if compile is True else compile))

    @property
    def samples(self) -> bool:
        """Whether any loss rests on a denoised feature."""
        return bool(self.loss_weights['lsh'] or self.loss_weights['virtual'])

    @property
    def imitates_boxes(self) -> bool:
        """Whether the student's boxes follow the teacher's: both have some, in the same encoding."""
        return bool(self.loss_weights['box'] and self.student_port.boxes and self.student_port.boxes == self.teacher_port.boxes)

    @property
    def uses_teacher_forward(self) -> bool:
        """See :class:`Distiller`."""
        prior_needs_it = self.samples and self.prior == 'teacher'
        target_is_used = self.samples or self.loss_weights['anchor']
        needs_it = prior_needs_it or (self.target != 'label' and target_is_used)
        needs_it = needs_it or self.loss_weights['logit'] or self.loss_weights['channel']
        return bool(needs_it or self.imitates_boxes) or super().uses_teacher_forward

    @property
    def classifiers(self) -> list[TeacherClassifier]:
        """The teacher's classifiers, which live with the teacher: one for all levels, or one for each."""
        if not self.teacher.is_loaded:
            raise RuntimeError('The teacher is not loaded yet: it is at the first training step, or by load_teacher().')
        return self.teacher.classifiers

    @property
    def guides(self) -> list[TeacherClassifier]:
        """The classifiers that guide and anchor: at every location with ``target='local'``."""
        return [guide.per_location() for guide in self.classifiers] if self.target == 'local' else self.classifiers

    def load_teacher(self) -> None:
        """See :meth:`Distiller.load_teacher`."""
        super().load_teacher()
        if self.lsh is not None and self.classifiers:
            self.lsh.set_std(*[classifier.weight for classifier in self.classifiers])

    def distill(
        self, student: Observed, teacher: Observed | None, target: Target | None, head_loss: HeadLoss
    ) -> dict[str, Tensor]:
        """See :meth:`Distiller.distill`."""
        weights = self.loss_weights
        losses: dict[str, Tensor] = {}
        if self.window and target is not None:
            student, teacher, target = self._look_through_window(student, teacher, target)
        pyramid = Pyramid.of(student.features)
        if weights['logit']:
            assert self.imitation is not None and student.logits is not None and target is not None
            assert teacher is not None and teacher.logits is not None
            logit = self.imitation(student.logits, teacher.logits, target, self.classifiers[0].sigmoid)
            losses['loss_dskd_logit'] = weights['logit'] * logit
        # A distribution over one location is always 1: maps of a single one have nothing to say.
        if self.channel_imitation is not None and max(pyramid.lengths) > 1:
            assert teacher is not None
            losses['loss_dskd_channel'] = self.channel_imitation(student.maps('logits'), teacher.maps('logits'))
        if self.imitates_boxes:
            assert student.boxes is not None and teacher is not None and teacher.boxes is not None and target is not None
            assert self.student_port.boxes is not None
            boxes = self.box_imitation(student.boxes, teacher.boxes, target, self.student_port.boxes.kind)
            losses['loss_dskd_box'] = weights['box'] * boxes
        aligned = per_location(self.align, Pyramid.pack(student.features)).float()
        judge: Judge
        if target is None:
            judge = HeadJudge(pyramid, head_loss)
        else:
            opinion = self._teacher_opinion(pyramid, teacher)
            guided_classes = None if self.guided_classes is None else self.guided_classes * len(aligned)
            judge = ClassifierJudge(pyramid, self.guides, target, opinion, guided_classes)
        prediction = None
        if weights['anchor']:
            anchor, prediction = judge.loss(aligned, self.imitation)
            losses['loss_dskd_anchor'] = weights['anchor'] * anchor
        if self.samples:
            losses.update(self._self_distill(pyramid, aligned, prediction, student.logits, judge, target, teacher))
        # With its losses off, φ must still be in the graph: DDP waits for every parameter.
        losses['loss_dskd_anchor'] = losses.get('loss_dskd_anchor', 0) + aligned.sum() * 0
        return losses

    def _build_imitation(self, config: dict | None) -> LogitLoss | None:
        own, theirs = self.student_port, self.teacher_port
        if config is None:
            if not theirs.classifiers:
                return None
            # What is advised tells the true one of several exclusive classes from the others.
            exclusive = theirs.num_classes > 1 and not (own.sigmoid or theirs.sigmoid)
            advised = self.site.defaults.get('imitation') if exclusive else None
            config = advised or dict(type='dskd_mm.KDLoss')
        cls = loss_class(config)
        if cls is None or not issubclass(cls, LogitLoss):
            raise TypeError(
                f'imitation of DSKDDistiller expects the config of a LogitLoss (dskd_mm.KDLoss, ...), but got {config}.'
            )
        if 'temperature' in arguments_of(cls):
            config = dict(temperature=self.temperature) | config
        loss = build_loss('imitation', config, own, theirs, self.readable)
        assert isinstance(loss, LogitLoss)
        return loss

    def _look_through_window(
        self, student: Observed, teacher: Observed | None, target: Target
    ) -> tuple[Observed, Observed | None, Target]:
        """What a window shows of all that the losses are about; as it is if everything fits into it."""
        assert self.window
        pyramid = Pyramid.of(student.features)
        if Window.shrink(pyramid, self.window).sizes == pyramid.sizes:
            # Other processes may have larger images, and what their windows show is counted by all of them together.
            return student, teacher, self.site.target_within(None, target, self.teacher_port.sigmoid)
        generator = self.noise_generator(student.features[0].device, 2)  # 2: neither the noise of the method nor of others
        window = self.site.window(pyramid, target, self.window, generator)
        seen = self.site.target_within(window, target, self.teacher_port.sigmoid)
        return student.within(window), None if teacher is None else teacher.within(window), seen

    def _teacher_opinion(self, pyramid: Pyramid, teacher: Observed | None) -> Tensor | None:
        """Logits that guidance and anchor aim at, at the resolution of :attr:`guides`; None for labels."""
        if self.target == 'label' or teacher is None:
            return None
        return pyramid.map(self.guides, Pyramid.pack(teacher.features)) if self.target == 'local' else teacher.logits

    def _self_distill(
        self,
        pyramid: Pyramid,
        aligned: Tensor,
        prediction: Tensor | None,
        logits: Tensor | None,
        judge: 'Judge',
        label: Target | None,
        teacher: Observed | None,
    ) -> dict[str, Tensor]:
        """Train the denoiser, denoise, and pull the student to the result. Everything in float32 (autocast aside)."""
        weights = self.loss_weights
        losses: dict[str, Tensor] = {}
        prior = aligned.detach()
        if self.prior == 'teacher':
            assert teacher is not None
            prior = Pyramid.pack(teacher.features)
        start = aligned.detach() if self.detach else aligned
        if self.autoencoder is not None:
            latent, losses['loss_dskd_autoencoder'] = self.autoencoder(prior[..., None])
            prior, start = latent[..., 0].float(), per_location(self.autoencoder.encode, start).float()
        scale = self._update_scale(prior)
        generator = self.noise_generator(aligned.device)

        denoiser = on_levels(self.denoiser, pyramid)
        steps = self.schedule.draw_timesteps(len(prior), generator)
        losses['loss_dskd_diff'] = weights['diff'] * noise_prediction_loss(
            denoiser, self.schedule, prior / scale, draw_like(prior, generator), steps
        )
        losses['dskd_std'] = scale
        if self.step_index % self.sampling_interval:
            return losses
        with torch.no_grad() if self.detach else nullcontext():
            start = start / scale
            gamma = None if self.noise_adapter is None else mixing_weights(self.noise_adapter, pyramid, start)
            guidance = judge.guidance(self.guidance_unit, scale, self.autoencoder)
            noise = draw_like(start, generator)
            denoised = self.sampler(denoiser, self.schedule, start, noise, guidance, gamma) * scale
            if self.autoencoder is not None:
                denoised = per_location(self.autoencoder.decode, denoised).float()
            opinion = pyramid.map(self.classifiers, denoised) if self.classifiers else None

        if self.lsh is not None:
            (ours, theirs), weight = self.site.vectors((aligned, denoised), label, generator)
            lsh, agreement = self.lsh(ours, theirs, weight)
            losses['loss_dskd_lsh'] = weights['lsh'] * lsh
            losses['dskd_bits'] = agreement
        if opinion is not None and label is not None:
            if weights['virtual']:
                assert logits is not None
                virtual = self.virtual_imitation(logits, opinion, label, self.classifiers[0].sigmoid)
                losses['loss_dskd_virtual'] = weights['virtual'] * virtual
            with torch.no_grad():
                if prediction is None or self.target == 'local':
                    prediction = pyramid.map(self.classifiers, aligned.detach())
                losses['dskd_acc_start'] = hit_rate(prediction, label)
                losses['dskd_acc_denoised'] = hit_rate(opinion, label)
        if gamma is not None:
            losses['dskd_gamma'] = gamma.detach().mean()
        return losses

    def _update_scale(self, prior: Tensor) -> Tensor:
        """Running standard deviation of the prior's features, a scalar."""
        if not self.normalize:
            return torch.ones_like(self.feature_std)
        with torch.no_grad():
            batch = std_over_ranks(prior).clamp(min=1e-6)
            # One batch that is not finite must not stay in the average for good.
            batch = torch.where(torch.isfinite(batch), batch, self.feature_std)
            first = (self.feature_std == 0).to(batch.dtype)
            self.feature_std.lerp_(batch, torch.clamp(first, min=0.01))
        return self.feature_std.clone()


def hit_rate(logits: Tensor, label: Target) -> Tensor:
    """How often the most likely class is the annotated one: the main one of mixed images, any one of several labels.

    What is ignored or background does not count, whether background is the last class or none.
    """
    wanted = main_classes(label.probability)[:, : label.foreground.shape[1]]
    counts = label.apply_weight(wanted.any(dim=1, keepdim=True).float())
    if logits.shape[1] == 1:
        hits = logits > 0  # a single class is named or not
    else:
        # The largest value instead of its index: finding the index takes several times as long where K is the outer dimension.
        found = logits[:, : wanted.shape[1]] == logits.amax(dim=1, keepdim=True)
        hits = (wanted & found).any(dim=1, keepdim=True)
    return (hits * counts).sum() / counts.sum().clamp(min=1)
