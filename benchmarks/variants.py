"""The methods, and what else can be run: methods with other options than their defaults."""

from collections.abc import Collection
from dataclasses import dataclass

METHODS = {
    'teacher': 'teacher',
    'plain': 'plain student',
    'kd': 'KD',
    'dkd': 'DKD',
    'lskd': 'LSKD',
    'dist': 'DIST',
    'fitnet': 'FitNet',
    'at': 'AT',
    'cwd': 'CWD',
    'pkd': 'PKD',
    'mgd': 'MGD',
    'lshfm': 'LSHFM',
    'srrl': 'SRRL',
    'simkd': 'SimKD (linear projector)',
    'crosskd': 'CrossKD',
    'vkd': 'VkD',
    'sokd': 'SoKD (approximation)',
    'rtk': 'RTK-style',
    'diffkd': 'DiffKD',
    'dskd': '**DSKD**',
}
"""All methods with their names in tables; the default of each is the variant of its own name."""


@dataclass(frozen=True)
class Variant:
    """A method with options other than its default.

    Attributes:
        label (str): Its name in tables.
        options (dict[str, str]): The options, as for ``--cfg-options``.
        method (str): The method. Defaults to DSKD.
    """

    label: str
    options: dict[str, str]
    method: str = 'dskd'


VIRTUAL = {'model.loss_weights.virtual': '1'}
NO_VIRTUAL = {'model.loss_weights.virtual': '0'}
NO_DIFFUSION = {'model.loss_weights.lsh': '0', **NO_VIRTUAL}
NO_LOGIT = {'model.loss_weights.logit': '0'}
LABEL = {'model.target': 'label'}
LOCAL = {'model.target': 'local'}
TEACHER_PRIOR = {'model.prior': 'teacher'}
DENSE_HASH = {'model.site.dense': 'True'}
STRONG_HASH = {'model.lsh_share': '1'}
# The levels of the neck of retinanet_r18-w8 and its teacher.
NECK = {
    **{f'model.layers.neck.{owner}.path': 'neck' for owner in ('student', 'teacher')},
    **{f'model.layers.neck.{owner}.index': 'all' for owner in ('student', 'teacher')},
    'model.layers.neck.student.channels': '16',
    'model.layers.neck.teacher.channels': '64',
}


def from_start(start: float, scale: float) -> dict[str, str]:
    """Options of a sampler: where it begins and how strong guidance is."""
    return {'model.sampler.start': str(start), 'model.sampler.scale': str(scale)}


# DSKD as it was when the records of before were made: a timestep table, guidance at the noisy feature, hard bits, no gate.
FIRST = {
    'model.denoiser.time': 'table',
    'model.denoiser.norm': 'BN',
    'model.sampler.steps': '5',
    **from_start(0.5, 1),
    'model.sampler.guidance_point': 'noisy',
    'model.guidance_temperature': '1',
    'model.gate': 'False',
    'model.lsh.soft': 'False',
    'model.lsh_share': '0',
    **VIRTUAL,
}
# In segmentation and dense detection.
FIRST_DENSE = {**FIRST, 'model.denoiser.norm': 'GN', **from_start(0.1, 100)}


def sampling(start: float, scale: float) -> dict[str, str]:
    """Options of a sampler, of DSKD's first construction."""
    return {**FIRST, **from_start(start, scale)}


def shift(length: float) -> dict[str, str]:
    """Options that leave the diffusion out: ẑ = z + length G, by one step from no noise to none. Those of the defaults add up
    to 2.3 G on images and proposals, to 4.6 G on maps."""
    return {'model.sampler.steps': '1', 'model.sampler.noise': 'none', **from_start(0.001, round(length * 1e4))}


def bridge(steps: int) -> dict[str, str]:
    """Options of a bridge in so many steps, guided as far in total as the defaults are on images."""
    scale = 2.3 / sum(1 / left for left in range(1, steps + 1))
    options = {'model.diffusion.type': 'dskd_mm.FeatureBridge', 'model.sampler.scale': f'{scale:.2f}'}
    return {**TEACHER_PRIOR, **options, 'model.sampler.steps': str(steps)}


NULL_HASH = {'model.lsh.project': 'null'}
NECK_SITE = {'model.site.type': 'dskd_mm.NeckSite'}
SOFT_NECK = {**NECK_SITE, 'model.target': 'soft'}
AVERAGE = {'model.type': 'benchmarks.controls.AveragedPrior'}
FADING = {'model.type': 'benchmarks.controls.FadingAnchor'}
RANDOM_SHIFT = {
    'model.diffusion.type': 'benchmarks.controls.RandomShift',
    'model.gate': 'False',
}


VARIANTS = {
    # Sampling begins from a mix of z and the teacher's feature.
    **{
        f'mix-{share}': Variant(f"sampling from z and {share} of the teacher's feature", {'model.mix': share})
        for share in ('.3', '.5', '.7', '1')
    },
    'mix-.5-unguided': Variant(
        "sampling from z and .5 of the teacher's feature, guidance off", {'model.mix': '.5', 'model.sampler.scale': '0'}
    ),
    'mix-.5-dense': Variant(
        "sampling from z and .5 of the teacher's feature, every location hashed", {'model.mix': '.5', **DENSE_HASH}
    ),
    'mix-.5-share-1': Variant(
        "sampling from z and .5 of the teacher's feature, hash as strong as the anchor", {'model.mix': '.5', **STRONG_HASH}
    ),
    'mix-.5-dense-share-1': Variant(
        "sampling from z and .5 of the teacher's feature, every location hashed, as strong as the anchor",
        {'model.mix': '.5', **DENSE_HASH, **STRONG_HASH},
    ),
    'mix-1-dense-share-1': Variant(
        "sampling from the teacher's feature alone, every location hashed, as strong as the anchor",
        {'model.mix': '1', **DENSE_HASH, **STRONG_HASH},
    ),
    'dense-share-1': Variant('every location hashed, as strong as the anchor', {**DENSE_HASH, **STRONG_HASH}),
    'share-.1': Variant('hash a third as strong', {'model.lsh_share': '0.1'}),
    **{f'warmup-{n}': Variant(f'warm-up of {n} iterations', {'model.warmup': n}) for n in ('0', '38', '95')},
    # A bridge from z to the teacher's feature, and a hash of what its classifier cannot see.
    'bridge': Variant("a bridge to the teacher's feature, one step", bridge(1)),
    'bridge-3': Variant("a bridge to the teacher's feature, three steps", bridge(3)),
    # A running average of the student as prior and start, and an anchor that fades.
    'average': Variant('prior and start: a running average of the student', AVERAGE),
    'fading': Variant('an anchor that fades', FADING),
    'mix-.5-fading': Variant(
        "sampling from z and .5 of the teacher's feature, an anchor that fades", {'model.mix': '.5', **FADING}
    ),
    # At a detector's neck, guided by the teacher's whole head.
    'neck': Variant("at the neck: the teacher's head guides towards the annotations", NECK_SITE),
    'neck-soft': Variant("at the neck: the teacher's head guides towards its own classes and boxes", SOFT_NECK),
    'neck-soft-anchor': Variant('control: the same anchor, no diffusion', {**SOFT_NECK, 'model.loss_weights.lsh': '0'}),
    'mix-.5-null': Variant(
        "sampling from z and .5 of the teacher's feature, hash of what the classifier does not see",
        {'model.mix': '.5', **NULL_HASH},
    ),
    'bridge-null': Variant('bridge, one step, hash of what the classifier does not see', {**bridge(1), **NULL_HASH}),
    # The controls of what is sampled.
    'shift': Variant('control: z shifted by guidance alone (no diffusion)', shift(2.3)),
    'shift-dense': Variant('control: z shifted by guidance alone (no diffusion)', shift(4.6)),
    'random-shift': Variant('control: z shifted as far in a random direction', RANDOM_SHIFT),
    'no-shift': Variant('control: ẑ = z', {**shift(0), 'model.gate': 'False'}),
    'teacher-feature': Variant("control: ẑ = the teacher's feature (no diffusion)", {'model.mix': '1', **shift(0)}),
    'teacher-feature-share-1': Variant(
        "control: ẑ = the teacher's feature, hash as strong as the anchor (no diffusion)",
        {'model.mix': '1', **shift(0), **STRONG_HASH},
    ),
    'first': Variant('first construction of the diffusion', FIRST),
    'first-dense': Variant('first construction of the diffusion', FIRST_DENSE),
    'published': Variant('as published: diffusion and hash alone', {'model.preset': 'published'}),
    'label': Variant('teacher-free: label guidance, no logit loss', {**LABEL, **NO_LOGIT}),
    'label-no-virtual': Variant('teacher-free, virtual teacher off', {**LABEL, **NO_LOGIT, **NO_VIRTUAL}),
    'label-virtual': Variant('teacher-free, virtual teacher on', {**LABEL, **NO_LOGIT, **VIRTUAL}),
    'no-guidance': Variant('guidance off', {**FIRST, 'model.sampler.scale': '0'}),
    'no-lsh': Variant('LSH off', {'model.loss_weights.lsh': '0'}),
    'no-virtual': Variant('virtual teacher off', NO_VIRTUAL),
    'no-anchor': Variant('anchor off', {'model.loss_weights.anchor': '0'}),
    'no-logit': Variant('logit loss off', NO_LOGIT),
    'no-channel': Variant('channel loss off', {'model.loss_weights.channel': '0'}),
    'no-box': Variant('box loss off', {'model.loss_weights.box': '0'}),
    'strong-box': Variant('box loss three times as strong', {'model.loss_weights.box': '3'}),
    # The denoiser learns the teacher's features, and the student's stands for a noisy one of them.
    'prior-teacher': Variant("prior: the teacher's features", TEACHER_PRIOR),
    # As if there were more noise in it, and guided as far.
    'prior-teacher-.5': Variant("prior: the teacher's features, sampling from .5", {**TEACHER_PRIOR, **from_start(0.5, 2.5)}),
    'prior-teacher-.7': Variant("prior: the teacher's features, sampling from .7", {**TEACHER_PRIOR, **from_start(0.7, 0.92)}),
    'prior-teacher-.7-share-1': Variant(
        "prior: the teacher's features, sampling from .7, hash as strong as the anchor",
        {**TEACHER_PRIOR, **from_start(0.7, 0.92), **STRONG_HASH},
    ),
    'prior-teacher-noised': Variant(
        "prior: the teacher's features, z noised first", {**TEACHER_PRIOR, 'model.sampler.noise': 'schedule'}
    ),
    'strong-guidance': Variant('guidance five times as strong', {**FIRST, 'model.sampler.scale': '5'}),
    'early-start': Variant('sampling from t=160 instead of t=400, guidance 8: equal in total', sampling(0.2, 8)),
    'early-start-strong-guidance': Variant(
        'sampling from t=160, guidance 32: four times as strong in total', sampling(0.2, 32)
    ),
    'no-noise': Variant('the same, but started without noise', {**sampling(0.2, 32), 'model.sampler.noise': 'none'}),
    'clean-guidance': Variant('guidance at the predicted clean feature', {**FIRST, 'model.sampler.guidance_point': 'clean'}),
    'local': Variant('target: the teacher at every location', LOCAL),
    'local-dense-prior-teacher': Variant(
        'target: the teacher at every location; prior: teacher features, every location hashed',
        {**LOCAL, **TEACHER_PRIOR, **DENSE_HASH},
    ),
    'dense-prior-teacher': Variant('prior: teacher features, every location hashed', {**TEACHER_PRIOR, **DENSE_HASH}),
    'align-no-norm': Variant('φ without a norm', {'model.align.norm': 'None'}),
    'strong-lsh': Variant('LSH five times as strong', {**FIRST, 'model.loss_weights.lsh': '5'}),
    # Dense tasks begin with little noise; this is where images begin.
    'middle-start': Variant('sampling from t=400, guidance 1, as for images', sampling(0.5, 1)),
    # What bounds the cost of large maps; those of these data sets are small.
    'window-8': Variant('8x8 locations of a level are seen', {'model.window': '8'}),
    'guidance-once': Variant(
        'first construction: guidance evaluated once', {**FIRST_DENSE, 'model.sampler.guidance_interval': '5'}
    ),
    # With a rival's loss added.
    'with-fitnet': Variant(
        '**DSKD** + FitNet',
        {'model.distill_losses.fitnet.type': 'dskd_mm.FitNetLoss', 'model.distill_losses.fitnet.loss_weight': '1'},
    ),
    'with-pkd': Variant(
        '**DSKD** + PKD',
        {
            **NECK,
            'model.distill_losses.pkd.type': 'dskd_mm.PKDLoss',
            'model.distill_losses.pkd.on': 'neck',
            'model.distill_losses.pkd.loss_weight': '10',
        },
    ),
    'with-neck': Variant(
        '**DSKD** + FitNet at the neck',
        {
            **NECK,
            'model.distill_losses.fitnet.type': 'dskd_mm.FitNetLoss',
            'model.distill_losses.fitnet.on': 'neck',
            'model.distill_losses.fitnet.loss_weight': '5',
            'model.distill_losses.fitnet.align.norm': 'None',
        },
    ),
    'with-dist': Variant('**DSKD** + DIST', {'model.distill_losses.dist.type': 'dskd_mm.DISTLoss'}),
    'temperature-1': Variant('temperature 1', {'model.temperature': '1'}),
    # The controls: everything but the diffusion.
    'anchor-and-logit-no-box': Variant(
        'control: soft anchor + logit loss, box loss off (no diffusion)', {**NO_DIFFUSION, 'model.loss_weights.box': '0'}
    ),
    'anchor-and-logit-no-channel': Variant(
        'control: soft anchor + logit loss, no channel loss (no diffusion)', {**NO_DIFFUSION, 'model.loss_weights.channel': '0'}
    ),
    'anchor-only': Variant('control: soft anchor alone (no diffusion)', {**NO_DIFFUSION, **NO_LOGIT}),
    'anchor-only-label': Variant(
        'control: label anchor alone (no diffusion, teacher-free)', {**NO_DIFFUSION, **NO_LOGIT, **LABEL}
    ),
    'anchor-and-logit': Variant('control: soft anchor + logit loss (no diffusion)', NO_DIFFUSION),
    'local-anchor-and-logit': Variant(
        'control: anchor at every location + logit loss (no diffusion)', {**NO_DIFFUSION, **LOCAL}
    ),
    # Rivals with other settings.
    'diffkd-kl': Variant('DiffKD, KL', {'model.pairs.logits.distance': 'kl'}, 'diffkd'),
    'diffkd-t4': Variant(
        'DiffKD, temperature 4',
        {
            'model.pairs.logits.distance.type': 'dskd_mm.KDLoss',
            'model.pairs.logits.distance.temperature': '4',
        },
        'diffkd',
    ),
    # Settings of their papers for other data; KD's is that for ImageNet, with a whole cross-entropy beside it.
    'kd-t1': Variant(
        'KD, temperature 1',
        {
            'model.distill_losses.kd.temperature': '1',
            'model.distill_losses.kd.loss_weight': '1',
            'model.student.head.loss.loss_weight': '1',
        },
        'kd',
    ),
    'dkd-cold': Variant('DKD, no warm-up', {'model.warmup': '0'}, 'dkd'),
    'dkd-t1': Variant(
        'DKD, β = 0.5, temperature 1',
        {'model.distill_losses.dkd.beta': '0.5', 'model.distill_losses.dkd.temperature': '1', 'model.warmup': '0'},
        'dkd',
    ),
    'dkd-beta-1': Variant('DKD, β = 1', {'model.distill_losses.dkd.beta': '1'}, 'dkd'),
    'dist-t4': Variant('DIST, τ = 4', {'model.distill_losses.dist.temperature': '4'}, 'dist'),
    'fitnet-w10': Variant('FitNet, weight 10', {'model.distill_losses.fitnet.loss_weight': '10'}, 'fitnet'),
    'kd-t4': Variant('KD, temperature 4', {'model.distill_losses.kd.temperature': '4'}, 'kd'),
    # At the resolution of the annotations: an eighth of it is that of the logits.
    'kd-upsampled': Variant('KD, logits enlarged', {'model.distill_losses.kd.upsample': '8'}, 'kd'),
    # Without the logits of a segmenter, which are compared location by location.
    'vkd-feature': Variant('VkD, features alone', {'model.loss_weights.logit': '0'}, 'vkd'),
    'diffkd-feature': Variant('DiffKD, features alone', {'model.pairs.feature.loss_weights.kd': '1'}, 'diffkd'),
    'logit-only': Variant(
        'control: logit loss alone (no anchor, no diffusion)', {**NO_DIFFUSION, 'model.loss_weights.anchor': '0'}
    ),
}
"""What else can be run, by the name that records carry."""

# Images that follow the teacher by Hinton's divergence instead of DKD's, as all did before: the other choices were made so.
COUPLED = {'model.imitation.type': 'dskd_mm.KDLoss', 'model.warmup': '0'}
VARIANTS |= {
    f'coupled-{name}': Variant(f"with KD's divergence: {variant.label}", {**COUPLED, **variant.options})
    for name, variant in VARIANTS.items()
    if variant.method == 'dskd' and 'label' not in name
}
VARIANTS['coupled'] = Variant("with KD's divergence: **DSKD**", COUPLED)

# With the virtual teacher beside the teacher's own logits, as all had it before.
VARIANTS |= {
    f'virtual-{name}': Variant(f'with the virtual teacher: {VARIANTS[name].label}', {**VARIANTS[name].options, **VIRTUAL})
    for name in ('no-lsh', 'shift', 'shift-dense', 'bridge', 'mix-.5', 'mix-1', 'mix-.5-null', 'mix-.5-dense-share-1')
}
VARIANTS['virtual'] = Variant('with the virtual teacher: **DSKD**', VIRTUAL)

# What ran on blood cells with the first construction: rows of before.
VARIANTS |= {
    f'first-dense-{name}': Variant(f'first construction: {VARIANTS[name].label}', {**FIRST_DENSE, **VARIANTS[name].options})
    for name in ('no-anchor', 'no-box', 'strong-box', 'with-pkd', 'with-neck', 'anchor-and-logit', 'anchor-and-logit-no-box')
}

# And rivals there before they were mended, in bfloat16, with their plain student: what they were no option brings back.
VARIANTS |= {
    f'earlier-{name}': Variant(f'earlier: {METHODS[name]}', {}, name)
    for name in ('plain', 'kd', 'fitnet', 'cwd', 'pkd', 'mgd', 'lshfm', 'vkd', 'sokd', 'rtk', 'diffkd')
}


def wrong_classes(beta: str) -> dict[str, str]:
    """Options that give the wrong classes another weight in DKD's divergence than the default of their number."""
    return {'model.imitation.type': 'dskd_mm.DKDLoss', 'model.imitation.beta': beta}


VARIANTS |= {f'beta-{beta}': Variant(f'**DSKD**, β = {beta}', wrong_classes(beta)) for beta in ('1', '2')}

# The small search that every method gets on held-out images: how strong is all that pulls the student?
FACTORS = ('0.1', '0.3', '1', '3')


def scaled(method: str, factor: str) -> str:
    """The variant of a method whose losses on the student are multiplied."""
    return method if factor == '1' else f'{method}-x{factor}'


SCALED = {
    scaled(method, factor): Variant(f'{label}, weight × {factor}', {'model.distill_weight': factor}, method)
    for method, label in METHODS.items()
    for factor in FACTORS
    if method not in ('teacher', 'plain') and factor != '1'
}
VARIANTS |= SCALED


def method_of(name: str) -> str:
    """The method of a variant; a method's name is that of its default."""
    return VARIANTS[name].method if name in VARIANTS else name


def label_of(name: str) -> str:
    """A variant's name in tables."""
    return VARIANTS[name].label if name in VARIANTS else METHODS[name]


# Images of ten classes as they had it before: DKD's weight of the wrong classes is that of its authors for a hundred.
BETA_8 = wrong_classes('8')
BEFORE = 'beta-8-'
VARIANTS |= {
    BEFORE + name: Variant(f'β = 8: {label_of(name)}', {**(VARIANTS[name].options if name in VARIANTS else {}), **BETA_8})
    for name in (
        *('dskd', 'anchor-and-logit', 'dskd-x0.1', 'dskd-x0.3', 'dskd-x3', 'first', 'average', 'mix-.5-fading'),
        *('mix-.3', 'mix-.5', 'mix-.7', 'mix-1', 'mix-.5-null', 'mix-.5-share-1', 'bridge', 'bridge-3', 'bridge-null'),
        *('shift', 'no-shift', 'random-shift', 'virtual', 'virtual-shift', 'virtual-bridge', 'virtual-mix-.5'),
        *('virtual-mix-1', 'virtual-mix-.5-null', 'virtual-mix-.5-dense-share-1'),
    )
}


# Rows of before besides those of β = 8: of DSKD's first construction, and of rivals before they were mended.
EARLIER = ('earlier-', 'first', 'guidance-once')


def beside(name: str, other: str, among: Collection[str]) -> str:
    """The variant that one is compared with: beside those of before that of before, if it is among those that ran."""
    prefix = BEFORE if name.startswith(BEFORE) else EARLIER[0] if name.startswith(EARLIER) else ''
    return prefix + other if prefix + other in among else other


def is_of_before(name: str) -> bool:
    """Whether a variant is a method as it was before."""
    return name.startswith((BEFORE, *EARLIER))
