"""Options of DSKD: one table of defaults for each task, and what is refused."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from dskd_mm.distillers.hashing import check_projection
from dskd_mm.distillers.options import MethodOptions, check_choice
from dskd_mm.losses.base import check_temperature
from dskd_mm.sites import Site
from dskd_mm.structures import TapSpec
from dskd_mm.utils.config import type_name

PRESETS: dict[str, dict[str, Any]] = {
    # With terms of ours: the anchor, and the teacher's own logits, maps and boxes.
    'default': {},
    # What the paper's abstract states, and nothing else. Nothing is there by which the weight of the hash could be told.
    'published': dict(
        prior='student',
        target='label',
        loss_weights=dict(lsh=100.0, anchor=0.0, virtual=0.0, logit=0.0, channel=0.0, box=0.0),
    ),
    # Ours again, without a forward pass of the teacher: of it only the classification layer is loaded.
    'teacher_free': dict(prior='student', target='label', loss_weights=dict(logit=0.0, channel=0.0, box=0.0)),
}
"""Options by the name of a preset; they go before the task's row, and what a config says goes before them."""
# At the locations of a detector's levels the hash would drown the task at the weight of images: students lost 7 points.
PUBLISHED_IN_TASKS = {task: dict(loss_weights=dict(lsh=10.0)) for task in ('dense_detection', 'neck')}

# How these were chosen, and what else was tried: docs/en/ablations.md.
TASK_DEFAULTS: dict[str, dict[str, Any]] = {
    # A sure teacher's small probabilities say nothing unless they are weighted up, and that is too much at the very start.
    'classification': dict(imitation=dict(type='dskd_mm.DKDLoss')),
    # No pooling averages the noise of pixels out: from the middle of the schedule the denoised feature would be worse than the
    # student's own. Students that followed its classification at every location ended below the plain one.
    'segmentation': dict(sampler=dict(steps=5, start=0.1, scale=100.0), window=32, loss_weights=dict(channel=3.0, virtual=0.0)),
    # The classifier is a 3x3 convolution with an output for each class and anchor, as wide as those that make the feature: all
    # over large maps, and for all classes, guidance would cost as much as the student. An image of COCO shows 3.5 classes on
    # average (Lin et al. 2014, section 5).
    'dense_detection': dict(temperature=1.0, sampler=dict(steps=5, start=0.1, scale=100.0), window=32, guided_classes=4),
    # Box heads end in 1024 channels, for which the denoiser of vectors would have 17 M parameters.
    'two_stage_detection': dict(temperature=1.0, autoencoder=dict(latent_channels=256)),
    # There are no class logits: the loss of the teacher's whole head guides towards the annotations. Its gradient has another
    # unit, and each evaluation is a pass through the head.
    'neck': dict(
        target='label',
        sampler=dict(steps=5, start=0.5, scale=1.0, guidance_point='noisy'),
        loss_weights=dict(virtual=0.0, logit=0.0),
    ),
}

BETA_PER_CLASS, MAX_BETA = 0.1, 8.0
"""Weight of the wrong classes in DKD by the number of classes, and that of its authors for the 100 of CIFAR, the most. The
gradient of that part grows as classes get fewer: of ten classes, 8 made the first epochs of some students diverge."""


@dataclass(kw_only=True)
class DSKDOptions(MethodOptions):
    """Options of :class:`~dskd_mm.distillers.DSKDDistiller`; with None the task decides, see :data:`TASK_DEFAULTS`.

    Attributes:
        preset (str): Options by a name, see :data:`PRESETS`: 'default', 'published' for what the paper's abstract states and
            nothing else, 'teacher_free' for no forward pass of the teacher. Whatever else is given goes before them. Defaults
            to 'default'.
        prior (str): What the denoiser is trained on: 'student' for z itself (detached), 'teacher' for the teacher's
            feature, each channel brought to z's moments. The student's feature then stands for a noisy one of the teacher's:
            it is not noised first, see ``sampler``. Defaults to 'student'.
        mix (float): Sampling begins from (1 - mix) z + mix f, f the teacher's feature with each channel brought to z's moments.
            A denoiser that knows the student's features alone then carries the teacher's to what the student can make.
            Defaults to 0: from z.
        target (str): What guidance and anchor aim at: 'label' for the ground truth, 'soft' for the teacher's own prediction,
            'local' for the teacher's own prediction at every location of its map, to which its classifier is applied as a 1x1
            convolution (a class activation map). Defaults to 'soft', and to 'label' where there is no linear classifier: there
            'soft' is for dense detectors, whose whole head it follows (:class:`~dskd_mm.distillers.soft_head.SoftHead`).
        temperature (float): Softens predictions that follow one another, unless ``imitation`` names another. Defaults to 4, in
            detection to 1.
        imitation (dict): How predictions follow the teacher's own in the anchor (with 'soft' and 'local' targets) and in the
            logit loss: the config of a :class:`~dskd_mm.losses.LogitLoss`. Defaults to :class:`~dskd_mm.losses.DKDLoss` for
            images of exclusive classes, and to :class:`~dskd_mm.losses.KDLoss` elsewhere. The ``beta`` of DKDLoss defaults to a
            tenth of the number of classes, but at most 8.
        warmup (int): Iterations over which all losses of the distillation grow linearly from 0 to their weight, but those by
            which diffusion and autoencoder learn. Defaults to 200 for images that follow the teacher's own predictions, else 0.
        detach (bool): Whether the denoised feature is a fixed target, sampled without a graph; otherwise gradients flow through
            the sampler. Defaults to True.
        guidance_unit (str): What the sampler's strength means, see :class:`~dskd_mm.guidance.ClassifierGuidance`. Defaults to
            'logit'.
        guidance_temperature (float): Softens prediction and target of the guidance where the teacher's own prediction is the
            target. Defaults to the temperature of the anchor.
        gate (bool): Whether a denoised feature that is farther from the target than the student's own teaches nothing: by the
            divergence of the classifier's prediction for an image or proposal, or where a whole head guides by its loss of the
            batch. Defaults to True.
        lsh_share (float): The weight 'lsh' is multiplied so that the hash loss's gradient by z is this share of the anchor's,
            see :class:`~dskd_mm.losses.GradientShare`; 0, or no anchor, leaves it. Defaults to 0.3.
        normalize (bool): Whether features enter the diffusion divided by the running standard deviation of the prior's, for
            the noise has unit variance. Defaults to True.
        window (int | False): Where there is a prediction for every location (dense detection, segmentation), all terms see only
            a window of so many locations high and wide of each level, around one of a class that is drawn for each image, level
            and step. It bounds the cost of large maps; levels of up to four windows are taken whole. False for all of every
            map. Defaults to 32 there.
        guided_classes (int | False): How many classes for each image of the batch guidance regards at most, besides the
            background where there is an output for it: those annotated in the batch first, then those of which the target is
            surest. It bounds guidance where a classifier of many classes costs more than the denoiser. No other term is
            concerned. False for all. Defaults to 4 in dense detection, else all.
        sampling_interval (int): In every so many-th iteration ẑ is sampled, and the losses that rest on it are taken; the
            denoiser learns in each. Defaults to 1.
        diffusion (dict): ``dict(type=...)`` for another class than :class:`~dskd_mm.diffusion.FeatureDiffusion`, which is built
            of the options below and of ``autoencoder``: ``dict(type='dskd_mm.FeatureBridge')`` leads from z to the teacher's
            feature instead, with ``prior='teacher'``. Defaults to none.
        align (dict): Arguments of :class:`~dskd_mm.features.ChannelAlign`, φ. Defaults to none.
        denoiser (dict): Arguments of :class:`~dskd_mm.diffusion.DiffusionDenoiser`. Its kernel size is 3 for maps and 1 for
            vectors unless given, its table of timesteps, if it has one, long enough for the schedule; a noise adapter takes the
            same norm. Those not named keep their default: ``dict(time='film', norm='GN')``.
        schedule (dict): Arguments of :class:`~dskd_mm.diffusion.DDIMSchedule`. Defaults to none.
        sampler (dict): Arguments of :class:`~dskd_mm.diffusion.TeacherGuidedSampler`; ``scale=0`` turns guidance off. With
            ``noise='adapter'`` a :class:`~dskd_mm.diffusion.NoiseAdapter` is built. Those not named keep their default:
            ``dict(steps=2, start=0.2, scale=20.0, guidance_point='clean')``, or the task's row; with the teacher's prior
            ``noise='none'``; for a bridge ``dict(steps=1, scale=2.3)``, in dense tasks a scale of 4.6.
        autoencoder (dict | False): ``dict(latent_channels=...)`` to diffuse wide features in a narrow latent; the guidance is
            pulled back through its decoder. False for none. Defaults to a latent of 256 for the box heads of two-stage
            detectors, none elsewhere.
        lsh (dict): Arguments of :class:`~dskd_mm.losses.LSHDistillLoss`. Those not named keep their default:
            ``dict(soft=True)``.
        loss_weights (dict): Weights of 'diff', 'lsh', 'anchor', 'virtual', 'logit', 'channel' and 'box'. A weight of 0 skips
            the work, too, but for 'diff': the denoiser then stays untrained, yet still denoises. The diffusion is left out if
            both 'lsh' and 'virtual' are 0. Those not named keep their default: 1; for 'virtual' 0 in
            segmentation, and where 'logit' is not and ``detach`` is left on; for 'box' the weight of 'logit', for 'channel'
            3 times that in segmentation and 0 elsewhere.
    """

    task_defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = TASK_DEFAULTS
    merged: ClassVar[tuple[str, ...]] = ('denoiser', 'sampler', 'autoencoder', 'lsh', 'loss_weights')
    losses: ClassVar[Mapping[str, float]] = dict(diff=1.0, lsh=1.0, anchor=1.0, virtual=1.0, logit=1.0, channel=0.0, box=1.0)

    preset: str = 'default'
    prior: str = 'student'
    mix: float = 0.0
    target: str = 'soft'
    temperature: float = 4.0
    imitation: dict | None = None
    detach: bool = True
    guidance_unit: str = 'logit'
    guidance_temperature: float | None = None
    gate: bool = True
    lsh_share: float = 0.3
    normalize: bool = True
    window: int | Literal[False] | None = None
    guided_classes: int | Literal[False] | None = None
    sampling_interval: int = 1
    diffusion: dict | None = None
    align: dict | None = None
    denoiser: dict = field(default_factory=lambda: dict(time='film', norm='GN'))
    schedule: dict | None = None
    sampler: dict = field(default_factory=lambda: dict(steps=2, start=0.2, scale=20.0, guidance_point='clean'))
    autoencoder: dict | Literal[False] | None = None
    lsh: dict = field(default_factory=lambda: dict(soft=True))
    loss_weights: Any = None

    @classmethod
    def resolve(cls, owner: type, given: Mapping[str, Any], site: Site, student: TapSpec, teacher: TapSpec) -> 'DSKDOptions':
        """See :meth:`MethodOptions.resolve`."""
        given = {name: value for name, value in given.items() if value is not None}
        preset = given.get('preset', cls.preset)
        check_choice(owner.__name__, 'preset', preset, tuple(PRESETS))
        options = PRESETS[preset]
        if preset == 'published':
            options = cls.overlay(options, PUBLISHED_IN_TASKS.get(site.task, {}))
        return super().resolve(owner, cls.overlay(options, given), site, student, teacher)

    @classmethod
    def defaults(cls, given: Mapping[str, Any], site: Site, student: TapSpec, teacher: TapSpec) -> dict[str, Any]:
        """See :meth:`MethodOptions.defaults`."""
        values = super().defaults(given, site, student, teacher)
        if type_name(given.get('diffusion') or {}) == 'FeatureBridge' and teacher.classifiers:
            # One step of a bridge adds all of its guidance. These are as long as what the sampler's defaults add up to.
            values['sampler'] = dict(steps=1, scale=4.6 if student.is_dense else 2.3)
        elif given.get('prior') == 'teacher':
            # The student's feature is the noisy one already. Noised again it would be farther from the teacher's than it was.
            values['sampler'] |= dict(noise='none')
        weights = values['loss_weights']
        # The box and the channel loss need the teacher's forward pass, as the logit loss does: they follow its weight.
        own = given.get('loss_weights')
        logit = own.get('logit', weights['logit']) if isinstance(own, Mapping) else weights['logit']
        weights |= dict(box=logit, channel=weights['channel'] * logit)
        if logit and given.get('detach', cls.detach):
            # What the teacher says itself is followed: its classifier on a guided feature is surer, and no wiser.
            weights['virtual'] = 0.0
        if teacher.num_classes <= 1 or student.sigmoid or teacher.sigmoid:
            values['imitation'] = None  # the task's tells the true one of several exclusive classes from the others
        latent = values['autoencoder']
        if latent and latent['latent_channels'] >= teacher.channels:
            values['autoencoder'] = None
        return values

    def complete(self, site: Site, student: TapSpec, teacher: TapSpec) -> None:
        """See :meth:`MethodOptions.complete`."""
        weights = self.loss_weights
        if self.warmup is None:
            follows = weights['logit'] or (weights['anchor'] and self.target != 'label')
            # Labels need none: nothing there is too much at the very start.
            self.warmup = None if follows else 0
        super().complete(site, student, teacher)
        if self.imitation is None and teacher.classifiers:
            self.imitation = dict(type='dskd_mm.KDLoss')
        if isinstance(self.imitation, Mapping) and type_name(self.imitation) == 'DKDLoss':
            self.imitation = dict(beta=min(BETA_PER_CLASS * teacher.num_classes, MAX_BETA)) | self.imitation

    @property
    def samples(self) -> bool:
        """Return whether any loss rests on a denoised feature."""
        return bool(self.loss_weights['lsh'] or self.loss_weights['virtual'])

    @property
    def _is_bridge(self) -> bool:
        return type_name(self.diffusion or {}) == 'FeatureBridge'

    @property
    def compares_with_teacher(self) -> bool:
        """Return whether any loss, boxes aside, needs what the teacher makes of the images."""
        weights = self.loss_weights
        target_is_used = self.samples or weights['anchor']
        needs_it = (self.samples and (self.mix or self.prior == 'teacher')) or (self.target != 'label' and target_is_used)
        return bool(needs_it or weights['logit'] or weights['channel'])

    @property
    def reads_probabilities(self) -> bool:
        """See :class:`MethodOptions`."""
        weights, target_is_used = self.loss_weights, self.samples or self.loss_weights['anchor']
        return bool(weights['logit'] or weights['channel'] or (self.target == 'soft' and target_is_used))

    def check(self, owner: str, site: Site, student: TapSpec, teacher: TapSpec) -> None:
        """See :meth:`MethodOptions.check`."""
        super().check(owner, site, student, teacher)
        check_choice(owner, 'prior', self.prior, ('student', 'teacher'))
        check_choice(owner, 'target', self.target, ('label', 'soft', 'local'))
        check_choice(owner, 'guidance_unit', self.guidance_unit, ('logit', 'gradient'))
        for temperature in (self.temperature, self.guidance_temperature):
            check_temperature(owner, 1.0 if temperature is None else temperature)
        if self.lsh_share < 0:
            raise ValueError(f'lsh_share of {owner} must not be negative, but got {self.lsh_share}.')
        if not 0 <= self.mix <= 1:
            raise ValueError(f'mix of {owner} must be between 0 (the student) and 1 (the teacher), but got {self.mix}.')
        if self._is_bridge and self.prior != 'teacher':
            raise ValueError(f"FeatureBridge leads to the teacher's feature: set prior='teacher' instead of {self.prior!r}.")
        if self.sampling_interval < 1:
            raise ValueError(f'sampling_interval of {owner} must be at least 1, but got {self.sampling_interval}.')
        check_projection(owner, self.lsh, site, teacher)
        if self.autoencoder and 'latent_channels' not in self.autoencoder:
            raise ValueError(
                f'autoencoder of {owner} expects latent_channels, fewer than the {teacher.channels} of the feature, but got '
                f'{dict(self.autoencoder)}: add them, or leave autoencoder out.'
            )
        self._check_bounds(owner, type(site).__name__, student, teacher)
        weights = self.loss_weights
        if not teacher.classifiers and (self.target == 'local' or weights['virtual'] or weights['logit']):
            raise ValueError(
                f"{type(site).__name__} has no linear classifier and expects target='label' or 'soft' and "
                f'loss_weights=dict(virtual=0, logit=0), but got target={self.target!r}, loss_weights={weights}.'
            )
        if self.samples and self.sampler.get('noise') == 'adapter':
            self._check_adapter()

    def _check_bounds(self, owner: str, site: str, student: TapSpec, teacher: TapSpec) -> None:
        """Refuse bounds of the cost that are none, or have no meaning at a site."""
        for name, bound, unit in (('window', self.window, 'location'), ('guided_classes', self.guided_classes, 'class')):
            if bound is True or (bound is not None and bound is not False and bound < 1):
                raise ValueError(f'{name} of {owner} must be at least one {unit}, or False, but got {bound}.')
        if self.window and not student.is_dense:
            raise ValueError(
                f'window={self.window} expects a classifier at every location, as in dense detection and segmentation, but '
                f'{site} has none here: leave window out.'
            )
        if self.guided_classes and not teacher.classifiers:
            raise ValueError(
                f'guided_classes={self.guided_classes} expects a linear classifier, but {site} has none: leave '
                'guided_classes out.'
            )

    def _check_adapter(self) -> None:
        """Refuse a noise adapter that nothing would train."""
        if self._is_bridge:
            raise ValueError("FeatureBridge has no noise to adapt: leave out noise='adapter' of the sampler.")
        if self.detach:
            raise ValueError(
                "noise='adapter' has to be trained through the sampler, but detach=True samples without a graph: set "
                "detach=False, or noise='schedule'."
            )
        if not self.loss_weights['virtual'] and not self.lsh.get('magnitude'):
            raise ValueError(
                "noise='adapter' has no loss to be trained by: the bits of a hash have no gradient. Set the loss weight "
                "'virtual', or lsh=dict(magnitude=...), or noise='schedule'."
            )
        if self.sampling_interval > 1:
            raise ValueError(
                f"noise='adapter' is trained through the sampler, in every iteration, but got sampling_interval="
                f"{self.sampling_interval}: set it to 1, or noise='schedule'."
            )
