"""DSKD: teacher-guided student diffusion self-distillation."""

import logging
from collections.abc import Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from dskd_mm.diffusion import FeatureDiffusion
from dskd_mm.distillers.base import Distiller, HeadLoss
from dskd_mm.distillers.dskd_batch import AlignedBatch, gated, share_of
from dskd_mm.distillers.dskd_options import DSKDOptions
from dskd_mm.distillers.foreground import ForegroundCount
from dskd_mm.distillers.hashing import hash_levels, hashed_cosines
from dskd_mm.distillers.soft_head import SoftHead
from dskd_mm.features import ChannelAlign, Pyramid, Window, align_levels, per_width
from dskd_mm.functional import hit_rate, mean
from dskd_mm.guidance import ClassifierGuide, HeadLossGuide, TeacherClassifier, TeacherGuide
from dskd_mm.losses import BoxLoss, GradientShare, KDLoss, LogitLoss, LSHDistillLoss, build_loss
from dskd_mm.registry import MODELS, build
from dskd_mm.structures import ModelOutputs, Target


@MODELS.register_module()
class DSKDDistiller(Distiller):
    r"""Teacher-Guided Student Self-Knowledge Distillation Using Diffusion Model (arXiv 2602.02107).

    A light diffusion model is trained on features and denoises the student's; the *teacher's classifier* guides its sampling,
    so that the denoised feature carries the teacher's knowledge; a locality-sensitive hashing loss pulls the student's feature
    towards its own denoised version. In a training step:

    1. z = φ(F_s), the student's feature in the teacher's channels;
    2. ``loss_dskd_anchor``: the frozen teacher's classifier on z follows the target (ours, not in the paper: without it φ is
       held by its own self-target alone and can drift; SRRL, ICLR 2021, and SimKD, CVPR 2022, reuse that classifier, too);
    3. ``loss_dskd_diff``: the denoiser learns to predict the noise in the prior's features;
    4. ẑ: z is noised and denoised again in a few guided DDIM steps, outside of the graph (with the option ``mix`` it begins
       between z and the teacher's feature);
    5. ``loss_dskd_lsh``: the hash of z follows that of ẑ, but where ẑ is farther from the target than z (the option ``gate``);
    6. ``loss_dskd_virtual``: the student's own logits follow the teacher's classifier on ẑ (ours; where step 7 is on, off by
       default);
    7. ``loss_dskd_logit``: and the teacher's own logits;
    8. ``loss_dskd_channel``: and a segmenter's logits as maps, each channel a distribution over its locations (CWD, Shu et al.
       2021): the former say what is at a location, these where a class is;
    9. ``loss_dskd_box``: likewise a detector's boxes, which no classifier could teach.

    How predictions follow the teacher's own (2 and 7) is told by the option ``imitation``. The virtual teacher (6) is followed
    by Hinton's divergence, as a sampled feature says little but noise about unlikely classes.

    With an autoencoder there is ``loss_dskd_autoencoder``, its reconstruction error, with a weight of 1.

    Health figures are logged beside, of z and of ẑ: how often the teacher's classifier names the annotated class
    (``dskd_acc_*``), the divergence of its predictions from the target (``dskd_kl_*``; at a neck the loss of the teacher's
    head), the cosine of what is hashed with the teacher's (``dskd_cosine_*``; where the teacher runs); the share of samples
    whose ẑ teaches (``dskd_gate``); ``dskd_noise_error`` beside ``dskd_trivial_error``, ``dskd_bits``, ``dskd_std`` and
    ``dskd_gamma``. docs/en/log.md tells what each means.

    The paper's text leaves several choices open; each is an option, and docs/en/ablations.md shows what those that were tried
    gave. The option ``preset`` names what is the paper's, 'published', and what is ours. With 'teacher_free' the teacher never
    runs: only its classification layer is loaded.

    Args:
        student (dict | nn.Module): The student: a host's model.
        teacher (dict): ``dict(config=..., checkpoint=...)``, see :class:`~dskd_mm.teacher.FrozenTeacher`.
        kwargs: Arguments of :class:`Distiller` (site, layers, distill_losses, noise_seed, data_preprocessor) and the fields of
            :class:`~dskd_mm.distillers.dskd_options.DSKDOptions`.

    Raises:
        ValueError: If a switch has an unknown value, or a combination cannot train.
    """

    options_class = DSKDOptions
    options: DSKDOptions
    learned_losses = ('_diff', '_autoencoder')
    renamed_keys = {
        'feature_std': 'diffusion.std',
        'denoiser.': 'diffusion.denoiser.',
        'noise_adapter.': 'diffusion.noise_adapter.',
        'autoencoder.': 'diffusion.autoencoder.',
    }

    def __init__(self, student: dict | nn.Module, teacher: dict, **kwargs: Any) -> None:
        super().__init__(student, teacher, **kwargs)
        options, specs = self.options, (self.student_spec, self.teacher_spec)
        weights, channels = options.loss_weights, self.teacher_spec.channels
        self.imitation: Any = None
        if options.imitation is not None:
            name = f'imitation of {type(self).__name__}'
            self.imitation = build_loss(name, options.imitation, *specs, LogitLoss, temperature=options.temperature)
        own_temperature: float = getattr(self.imitation, 'temperature', options.temperature)
        self.guidance_temperature = options.guidance_temperature or own_temperature
        self.virtual_imitation = KDLoss(options.temperature)
        self.box_imitation: Any = None
        if weights['box'] and self.student_spec.boxes and self.student_spec.boxes == self.teacher_spec.boxes:
            self.box_imitation = build_loss('loss_weights.box', dict(type=BoxLoss), *specs)
        self.channel_imitation: Any = None
        if weights['channel']:
            config = dict(type='dskd_mm.CWDLoss', on='logits', temperature=4.0, loss_weight=1.0)  # T of its authors, for logits
            self.channel_imitation = build_loss('loss_weights.channel', config, *specs)
        is_soft_neck = options.target == 'soft' and not self.teacher_spec.classifiers
        self.soft_head = SoftHead(self.teacher, type(self).__name__) if is_soft_neck else None
        make = partial(build, ChannelAlign, options.align)
        self.align = per_width(make, in_channels=self.student_spec.channels, out_channels=channels)
        self.foreground_in_window = ForegroundCount() if options.window and self.site.counts_objects else nn.Identity()
        self.lsh: Any = None
        if weights['lsh']:
            self.lsh = per_width(partial(build, LSHDistillLoss, options.lsh), in_channels=channels)
        has_share = self.lsh is not None and weights['anchor'] and options.lsh_share
        self.lsh_share: Any = GradientShare(options.lsh_share * weights['anchor']) if has_share else None
        self.diffusion: Any = None
        if options.samples:
            self.diffusion = build(
                FeatureDiffusion,
                options.diffusion,
                channels=channels,
                kernel_size=3 if self.student_spec.is_map else 1,
                norm=self.site.norm,
                denoiser=options.denoiser,
                schedule=options.schedule,
                sampler=options.sampler,
                autoencoder=options.autoencoder or None,
                normalize=options.normalize,
            )

    def _accept_checkpoint(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._accept_checkpoint(state_dict, prefix, *args)
        own = self.state_dict()
        hashes = any(key.startswith(f'{prefix}lsh.') for key in state_dict)
        for part in ('diffusion.denoiser.', 'lsh.', 'lsh_share.'):
            theirs = {key: value for key, value in state_dict.items() if key.startswith(prefix + part)}
            ours = {prefix + key: value for key, value in own.items() if key.startswith(part)}
            if {k: v.shape for k, v in theirs.items()} == {k: v.shape for k, v in ours.items()}:
                continue
            if theirs and ours:
                print_log(
                    f"The checkpoint's {part.strip('.')} is of another construction than the config's and begins anew; the "
                    f'student is loaded as it is. To go on with what it has: {self._mend(part, theirs)}.',
                    'current',
                    logging.WARNING,
                )
            # How large gradients are is soon known again, and a run without a share of them has none to tell.
            if (theirs and ours) or (part == 'lsh_share.' and hashes):
                for key in theirs:
                    del state_dict[key]
                state_dict.update(ours)

    def _mend(self, part: str, theirs: Mapping[str, Tensor]) -> str:
        """Return the options by which a part of an older checkpoint, or of another run, is what it was."""
        centers = [key for key in theirs if key.endswith('center')]  # of bits, or of soft ones' vectors
        if part == 'lsh.' and all(len(theirs[key]) == len(theirs[key.replace('center', 'projection')]) for key in centers):
            return 'lsh=dict(soft=False), lsh_share=0'
        if part == 'diffusion.denoiser.' and any('time_embedding' in key for key in theirs):
            return f"denoiser=dict(time='table', norm={self.site.norm!r})"
        return f'give {"denoiser" if part == "diffusion.denoiser." else "lsh"} the options of the run that wrote it'

    @property
    def uses_teacher_forward(self) -> bool:
        """See :class:`Distiller`."""
        return self.options.compares_with_teacher or self.box_imitation is not None or super().uses_teacher_forward

    @property
    def classifiers(self) -> list[TeacherClassifier]:
        """The teacher's classifiers, which live with the teacher: one for all levels, or one for each."""
        if not self.teacher.is_loaded:
            raise RuntimeError('The teacher is not loaded yet: it is at the first training step, or by load_teacher().')
        return self.teacher.classifiers

    @property
    def guiding_classifiers(self) -> list[TeacherClassifier]:
        """The classifiers that guide and anchor: at every location with ``target='local'``."""
        is_local = self.options.target == 'local'
        return [classifier.per_location() for classifier in self.classifiers] if is_local else self.classifiers

    def load_teacher(self) -> None:
        """See :meth:`Distiller.load_teacher`."""
        super().load_teacher()
        if self.lsh is not None and self.classifiers:
            weights = [classifier.weight for classifier in self.classifiers]
            self.lsh.set_classifier(*weights, sigmoid=self.classifiers[0].sigmoid)

    def distill(self, student: ModelOutputs, teacher: Any, target: Any, head_loss: HeadLoss) -> dict[str, Tensor]:
        """See :meth:`Distiller.distill`."""
        batch = self._align(student, teacher, target, head_loss)
        losses = self._follow_outputs(batch)
        figures: dict[str, Tensor] = {}
        prediction = None
        if self.options.loss_weights['anchor']:
            losses['anchor'], prediction = batch.guide.loss(batch.aligned, self.imitation)
        if self.diffusion is not None:
            found, figures = self._self_distill(batch, losses.get('anchor'), prediction)
            losses |= found
        weights = {'autoencoder': 1.0, **self.options.loss_weights}
        weighted = {f'loss_dskd_{name}': weights[name] * value for name, value in losses.items()}
        # With its losses off, φ must still be in the graph: DDP waits for every parameter.
        weighted['loss_dskd_anchor'] = weighted.get('loss_dskd_anchor', 0) + batch.aligned.sum() * 0
        return weighted | {f'dskd_{name}': value for name, value in figures.items()}

    def denoise(
        self,
        inputs: Tensor,
        data_samples: list,
        guided: bool = True,
        trajectory: list[Tensor] | None = None,
        with_teacher: bool = False,
    ) -> tuple[AlignedBatch, Tensor]:
        """Denoise the student's features of a batch, as a training step does.

        No parameter changes. In training mode norms use the statistics of the batch and running averages follow it, as in a
        step: take a copy if that matters. The noise is that of the present iteration, so that two calls compare.

        Args:
            inputs (Tensor): Preprocessed images of shape (B, C, H, W).
            data_samples (list): Their annotations.
            guided (bool): Whether the teacher guides. Defaults to True.
            trajectory (list[Tensor], optional): Gets the predicted clean feature of every step appended, (B, C, N). Defaults to
                None.
            with_teacher (bool): See :meth:`run_models`. Defaults to False.

        Returns:
            tuple[AlignedBatch, Tensor]: The student's features z with all that belongs to them, and ẑ, (B, C, N).

        Raises:
            ValueError: If this distiller does not denoise.
        """
        if self.diffusion is None:
            raise ValueError(
                'DSKDDistiller.denoise expects a distiller that denoises, but its loss_weights turn both lsh and virtual off.'
            )
        with torch.no_grad():
            outputs = self.run_models(inputs, data_samples, with_teacher)
            batch = self._align(outputs.student, outputs.teacher, outputs.target, outputs.head_loss)
            generator = self.noise_generator(inputs.device)
            _, _, start = self._train_denoiser(batch, generator)
            guidance = partial(batch.guide.guidance, self.options.guidance_unit) if guided else None
            steps: list[Tensor] | None = None if trajectory is None else []
            denoised, _ = self.diffusion.denoise(start, batch.pyramid, generator, guidance, steps)
            if trajectory is not None:
                trajectory.extend(self.diffusion.decode(step) for step in steps or ())
            return batch, self.diffusion.decode(denoised)

    def _align(self, student: ModelOutputs, teacher: Any, target: Any, head_loss: HeadLoss) -> AlignedBatch:
        """Look through the window, bring the student's feature to the teacher's channels and set up the guide."""
        options = self.options
        if options.window and target is not None:
            student, teacher, target = self._look_through_window(student, teacher, target)
        pyramid, aligned = align_levels(self.align, student.features)
        aligned = aligned.float()
        guide: TeacherGuide
        if target is None:
            guide = HeadLossGuide(pyramid, self.soft_head.towards(teacher.features) if self.soft_head else head_loss)
        else:
            logits = self._teacher_logits(pyramid, teacher)
            guided_classes = options.guided_classes * len(aligned) if options.guided_classes else None
            guide = ClassifierGuide(
                pyramid, self.guiding_classifiers, target, logits, guided_classes, self.guidance_temperature
            )
        return AlignedBatch(pyramid, aligned, guide, student, teacher, target)

    def _follow_outputs(self, batch: AlignedBatch) -> dict[str, Tensor]:
        """Compare the student's own logits, maps of logits and boxes with the teacher's."""
        outputs, losses = (batch.student, batch.teacher, batch.target), {}
        if self.options.loss_weights['logit']:
            losses['logit'] = self.imitation.compare_outputs(*outputs)
        # A distribution over one location is always 1: maps of a single one have nothing to say.
        if self.channel_imitation is not None and max(batch.pyramid.lengths) > 1:
            losses['channel'] = self.channel_imitation.compare_outputs(*outputs)
        if self.box_imitation is not None:
            losses['box'] = self.box_imitation.compare_outputs(*outputs)
        return losses

    def _look_through_window(
        self, student: ModelOutputs, teacher: ModelOutputs | None, target: Target
    ) -> tuple[ModelOutputs, ModelOutputs | None, Target]:
        """Return what a window shows of all that the losses are about; as it is if everything fits into it."""
        pyramid, size, window = Pyramid.of(student.features), self.options.window or 0, None
        if Window.shrink(pyramid, size).sizes != pyramid.sizes:
            generator = self.noise_generator(student.features[0].device, 2)  # 2: neither the noise of the method nor of others
            window = self.site.window(pyramid, target, size, generator)
            student, teacher = student.within(window), None if teacher is None else teacher.within(window)
        # Other processes may have larger images, and what their windows show is counted by all of them together.
        return student, teacher, self.foreground_in_window(self.site.target_within(window, target, self.teacher_spec.sigmoid))

    def _teacher_logits(self, pyramid: Pyramid, teacher: ModelOutputs | None) -> Tensor | None:
        """Return the logits that guidance and anchor aim at, as :attr:`guiding_classifiers` have them; None for labels."""
        if self.options.target == 'label' or teacher is None:
            return None
        if self.options.target == 'soft':
            return teacher.logits
        return pyramid.map(self.guiding_classifiers, Pyramid.pack(teacher.features))

    def _train_denoiser(
        self, batch: AlignedBatch, generator: torch.Generator
    ) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
        """Return the losses by which the diffusion learns, its health, and the latents (B, C', N) that sampling starts from."""
        losses: dict[str, Tensor] = {}
        prior = batch.aligned.detach()
        takes_teacher = self.options.mix or self.options.prior == 'teacher'
        matched = batch.match_teacher() if takes_teacher else None
        if self.options.prior == 'teacher' and matched is not None:
            prior = matched
        latent, reconstruction = self.diffusion.encode_prior(prior)
        if reconstruction is not None:
            losses['autoencoder'] = reconstruction
        feature = batch.aligned.detach() if self.options.detach else batch.aligned
        if matched is not None:
            feature = feature.lerp(matched, self.options.mix)
        start = self.diffusion.encode(feature)
        losses['diff'] = self.diffusion.loss(latent, batch.pyramid, generator, start)
        figures = dict(
            std=self.diffusion.scale,
            noise_error=losses['diff'].detach(),
            trivial_error=self.diffusion.trivial_error(latent.detach(), start.detach()),
        )
        return losses, figures, start

    def _self_distill(
        self, batch: AlignedBatch, anchor: Tensor | None, prediction: Tensor | None
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Train the denoiser, denoise, and pull the student to the result. Everything in float32 (autocast aside).

        Args:
            batch (AlignedBatch): What the step works on.
            anchor (Tensor, optional): The anchor's loss, if it is taken: its gradient tells the weight of the hash.
            prediction (Tensor, optional): Logits of the teacher's classifier on z, if the anchor made them.

        Returns:
            tuple[dict[str, Tensor], dict[str, Tensor]]: Losses and health figures by name.
        """
        options, diffusion, aligned = self.options, self.diffusion, batch.aligned
        generator = self.noise_generator(aligned.device)
        losses, figures, start = self._train_denoiser(batch, generator)
        if self.step_index % options.sampling_interval:
            return losses, figures
        with torch.no_grad() if options.detach else nullcontext():
            guidance = partial(batch.guide.guidance, options.guidance_unit)
            denoised, gamma = diffusion.denoise(start, batch.pyramid, generator, guidance)
            denoised = diffusion.decode(denoised)
            virtual_logits = batch.pyramid.map(self.classifiers, denoised) if self.classifiers else None
        judged, found = self._judge(batch, anchor, prediction, denoised.detach(), virtual_logits)
        figures |= found
        gate = judged if options.gate else None
        if self.lsh is not None:
            counts = None if gate is None else gate[:, None, None]
            losses['lsh'], figures['bits'] = hash_levels(
                self.lsh, self.site, batch.pyramid, (aligned, denoised), counts, batch.target, generator
            )
            if gate is not None:  # those that teach count for no more than if all did
                losses['lsh'] = share_of(gate) * losses['lsh']
            if self.lsh_share is not None:
                losses['lsh'] = self.lsh_share(losses['lsh'], anchor, aligned, counts) * losses['lsh']
        if options.loss_weights['virtual'] and virtual_logits is not None and batch.target is not None:
            target = batch.target if gate is None else gated(batch.target, gate)
            sigmoid = self.classifiers[0].sigmoid
            losses['virtual'] = self.virtual_imitation(batch.student.logits, virtual_logits, target, sigmoid)
        if gamma is not None:
            figures['gamma'] = gamma.detach().mean()
        return losses, figures

    @torch.no_grad()
    def _judge(
        self, batch: AlignedBatch, anchor: Tensor | None, prediction: Tensor | None, denoised: Tensor, virtual: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compare z and the denoised feature with the teacher.

        Args:
            batch (AlignedBatch): What the step works on.
            anchor (Tensor, optional): The anchor's loss, if it is taken.
            prediction (Tensor, optional): Logits of the guiding classifier on z, if the anchor made them.
            denoised (Tensor): The denoised feature, (B, C, N).
            virtual (Tensor, optional): Logits of the teacher's classifier on it.

        Returns:
            tuple[Tensor, dict[str, Tensor]]: For each sample 1 if the denoised feature is no farther from the target than z,
            else 0, (B, ); and health figures by name.
        """
        figures: dict[str, Tensor] = {}
        guide, aligned, is_local = batch.guide, batch.aligned.detach(), self.options.target == 'local'
        if batch.teacher is not None and aligned.numel():
            teacher = Pyramid.pack(batch.teacher.features).float()
            generator = self.noise_generator(aligned.device, 3)  # 3: no figure may change what others draw
            cosines = hashed_cosines(self.site, batch.pyramid, (aligned, denoised), teacher, batch.target, generator)
            figures['cosine_student'], figures['cosine_denoised'] = cosines
        if not isinstance(guide, ClassifierGuide) or virtual is None:
            figures['kl_student'] = guide.loss(aligned, None)[0] if anchor is None else anchor.detach()
            figures['kl_denoised'] = guide.loss(denoised, None)[0]
            # A head's loss is of the whole batch.
            figures['gate'] = (figures['kl_denoised'] <= figures['kl_student']).float()
            return figures['gate'].expand(len(aligned)), figures
        own = guide.classify(aligned) if prediction is None else prediction.detach()
        divergences = [guide.divergences(logits) for logits in (own, guide.classify(denoised) if is_local else virtual)]
        gate = (divergences[1] <= divergences[0]).float()
        for name, divergence in zip(('kl_student', 'kl_denoised'), divergences, strict=True):
            figures[name] = divergence.sum() / guide.target.normalizer()
        figures['gate'] = mean(gate)
        pooled = batch.pyramid.map(self.classifiers, aligned) if is_local else own
        figures['acc_start'], figures['acc_denoised'] = (hit_rate(x, guide.label) for x in (pooled, virtual))
        return gate, figures
