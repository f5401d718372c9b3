"""What every key of the log is, and from where to where it is healthy: the table behind docs/en/log.md and the report."""

import re
from collections.abc import Collection
from dataclasses import dataclass


@dataclass(frozen=True)
class LogKey:
    """A key of the log.

    Attributes:
        key (str): The key; ``<word>`` stands for a name of the user's own.
        about (str): What it is.
        mend (str): What to do if it is not healthy. Defaults to ''.
        low (float, optional): The lowest healthy value late in training. Defaults to None: none.
        high (float, optional): The highest. Defaults to None: none.
        below (str): Another key of the same run that it has to be lower than. Defaults to ''.
        above (str): Likewise higher. Defaults to ''.
        margin (float): What the other key is multiplied with before they are compared. Defaults to 1.
        trend (str): 'falls' or 'rises' after the warm-up, '' for neither. Defaults to ''.
        note (str): What else is to be known of healthy values. Defaults to ''.
    """

    key: str
    about: str
    mend: str = ''
    low: float | None = None
    high: float | None = None
    below: str = ''
    above: str = ''
    margin: float = 1.0
    trend: str = ''
    note: str = ''

    @property
    def healthy(self) -> str:
        """Return what is healthy, in words: the band, then the note."""
        words = [self.trend] if self.trend else []
        if self.low is not None and self.low == self.high:
            words.append(f'{self.low:g}')
        elif self.low is not None and self.high is not None:
            words.append(f'{self.low:g} to {self.high:g}')
        elif self.low is not None:
            words.append(f'{self.low:g} or more')
        elif self.high is not None:
            words.append(f'{self.high:g} or less')
        factor = '' if self.margin == 1 else f'{self.margin:g} times '
        words += [f'{word} {factor}`{key}`' for word, key in (('below', self.below), ('above', self.above)) if key]
        return '; '.join(filter(None, [', '.join(words), self.note]))

    @property
    def is_judged(self) -> bool:
        """Return whether there is a band that a run can be held to."""
        return bool(self.trend or self.below or self.above) or self.low is not None or self.high is not None

    def matches(self, name: str) -> bool:
        """Return whether a name in the log is this key."""
        return re.fullmatch(re.sub(r'<\w+>', r'\\w+', self.key), name) is not None


AFTER_WARMUP = 'once the warm-up is over'
USERS = LogKey(
    'loss_<name>',
    'a loss of `distill_losses`, by your name for it',
    "set its `loss_weight`: the papers' are made for their maps and widths",
    trend='falls',
    note='of the size of `loss_student`',
)
EVERY = (
    LogKey(
        'loss',
        'the total that is trained on: the sum of all keys with `loss` in them, but for `loss_student`',
        'look which of the others rises',
        trend='falls',
    ),
    LogKey(
        'loss_student',
        "the sum of the student's own losses; with a plain model it is `loss`",
        'where it stays far above a plain training: smaller `loss_weights`, or a longer `warmup`',
        trend='falls',
        note='as in a plain training, or a little slower',
    ),
    LogKey(
        'distill_warmup',
        'what the warm-up multiplies all losses on the student with: of DSKD all `loss_dskd_*` but `_diff` and `_autoencoder`',
        'most of a short run is warm-up? `model.warmup=<fewer iterations>`',
        low=1,
        high=1,
        note='rises to it from 0 and stays',
    ),
    USERS,
)
LOSSES = (
    LogKey(
        'loss_dskd_diff',
        'squared error of the noise prediction, with its weight',
        'at `dskd_trivial_error` for thousands of iterations the denoiser learns nothing: check `dskd_std`, and the learning '
        "rate. With `denoiser=dict(time='table')` it starts near 2, as an untrained prediction has a spread of its own",
        high=1,
        note='see `dskd_noise_error`',
    ),
    LogKey(
        'loss_dskd_autoencoder',
        'error of the autoencoder that diffuses wide features in a narrow latent',
        '`autoencoder=dict(latent_channels=...)`, wider',
        trend='falls',
    ),
    LogKey(
        'loss_dskd_anchor',
        "divergence of the teacher's classifier on the student's feature from the target; at a neck the loss of the teacher's "
        'whole head',
        'stays: does the teacher fit (its checkpoint, its classes)?',
        trend='falls',
        note=AFTER_WARMUP,
    ),
    LogKey(
        'loss_dskd_lsh',
        "divergence of the student's hash from that of the denoised feature, multiplied so that its gradient is a share of the "
        "anchor's (`lsh_share`)",
        'for how near it is look at `dskd_bits`. Too hard: lower `model.loss_weights.lsh`',
        note='of any size: it says how hard it pulls, not how near it is',
    ),
    LogKey(
        'loss_dskd_virtual',
        "divergence of the student's logits from the teacher's classifier on the denoised feature",
        'rises while `loss_dskd_logit` falls: look at `dskd_acc_denoised`',
        trend='falls',
        note=AFTER_WARMUP,
    ),
    LogKey(
        'loss_dskd_logit',
        "divergence of the student's logits from the teacher's",
        "stays: does the teacher fit (its checkpoint, its classes, its images' size)?",
        trend='falls',
        note=AFTER_WARMUP,
    ),
    LogKey(
        'loss_dskd_channel',
        'segmenters: the logits as maps, each channel a distribution over its locations',
        'stays: lower `model.loss_weights.channel`',
        trend='falls',
    ),
    LogKey(
        'loss_dskd_box',
        "detectors: the student's boxes against the teacher's",
        "runs away: the teacher's boxes are not what they should be. Leave it out: `model.loss_weights.box=0`",
        trend='falls',
        note="of the size of the detector's own box loss",
    ),
)
FIGURES = (
    LogKey(
        'dskd_acc_start',
        "how often the teacher's classifier names the annotated class on the student's feature",
        'stays at chance: see `loss_dskd_anchor`',
        trend='rises',
    ),
    LogKey(
        'dskd_acc_denoised',
        'the same on the denoised feature',
        'lower: `model.sampler.start=0.1` begins with less noise',
        above='dskd_acc_start',
        margin=0.98,
    ),
    LogKey(
        'dskd_kl_student',
        "divergence of the teacher's classifier on the student's feature from the target: the teacher's own prediction, or the "
        "annotations. At a neck the loss of the teacher's head there",
        'see `loss_dskd_anchor`',
        trend='falls',
    ),
    LogKey(
        'dskd_kl_denoised',
        'the same on the denoised feature',
        'higher: guidance is too weak for the noise, or overshoots; `dskd_gate` then lets little teach',
        below='dskd_kl_student',
    ),
    LogKey(
        'dskd_cosine_student',
        "cosine of what is hashed of the student's feature, less the mean, and the teacher's, once each channel has the "
        "moments of the teacher's. Where the teacher runs",
        'near 0: φ has turned away from the teacher. See `loss_dskd_anchor`',
        low=0,
        note="1 is a feature that points where the teacher's does, 0 one that has nothing in common with it",
    ),
    LogKey(
        'dskd_cosine_denoised',
        'the same of the denoised feature',
        'much lower: sampling loses the image. Lower `model.sampler.start`',
        above='dskd_cosine_student',
        margin=0.9,
    ),
    LogKey(
        'dskd_gate',
        'share of samples whose denoised feature teaches, as it is no farther from the target; at a neck 1 or 0 for the whole '
        'batch',
        'near 0 the diffusion gives nothing; see `dskd_kl_denoised`',
        low=0.5,
        high=1,
    ),
    LogKey(
        'dskd_noise_error',
        'error of the noise prediction',
        'see `loss_dskd_diff`',
        below='dskd_trivial_error',
        margin=1.05,
        note='averaged over some iterations',
    ),
    LogKey(
        'dskd_trivial_error',
        'error of the filter that takes the feature itself for noise, on average over the timesteps',
        note='what `dskd_noise_error` is compared with',
    ),
    LogKey(
        'dskd_bits',
        'share of hash bits that agree',
        "at 0.5, a coin flip, the denoised feature has nothing of the student's left: lower `model.sampler.start`",
        low=0.8,
        high=1,
        note='at a neck it begins near 0.6',
    ),
    LogKey(
        'dskd_std',
        'spread of the features that are diffused',
        'grows without end: the student diverges. Lower the learning rate, or clip gradients',
        low=0.01,
        high=100,
        note='steady',
    ),
    LogKey(
        'dskd_gamma',
        "with `sampler=dict(noise='adapter')`: how much of the feature the start of sampling keeps",
        "at 0 or 1: `noise='schedule'`",
        low=0.02,
        high=0.98,
    ),
)
RIVALS = (
    LogKey(
        'loss_diffkd_<pair>_diff',
        "DiffKD, for each pair of maps: error of the noise prediction in the teacher's map",
        'the learning rate; an autoencoder where maps are wide',
        trend='falls',
    ),
    LogKey('loss_diffkd_<pair>_autoencoder', 'DiffKD: error of the autoencoder', 'a wider latent', trend='falls'),
    LogKey(
        'loss_diffkd_<pair>_kd',
        "DiffKD: distance of the denoised student's map to the teacher's",
        'lower its weight',
        trend='falls',
    ),
    LogKey(
        'diffkd_<pair>_gamma',
        "DiffKD: how much of the student's map the start of sampling keeps",
        'at 0 or 1: see `loss_diffkd_<pair>_kd`',
        low=0,
        high=1,
    ),
    LogKey('loss_lshfm_mimic', 'LSHFM: the loss of feature mimicking', 'lower its weight', trend='falls'),
    LogKey('lshfm_bits', 'LSHFM: share of hash bits that agree', 'see `loss_lshfm_mimic`', low=0.5, high=1),
    LogKey('loss_srrl_feature', "SRRL: distance of the aligned feature to the teacher's", 'lower its weight', trend='falls'),
    LogKey(
        'loss_srrl_logit',
        "SRRL: distance of the teacher's classifier on that feature from its own logits",
        'lower its weight',
        trend='falls',
    ),
    LogKey('loss_simkd_feature', "SimKD: distance of the projected map to the teacher's", 'lower its weight', trend='falls'),
    LogKey(
        'loss_crosskd_cls', "CrossKD: distance of the cross-head classes to the teacher's", 'lower its weight', trend='falls'
    ),
    LogKey('loss_crosskd_box', "CrossKD: distance of the cross-head boxes to the teacher's", 'lower its weight', trend='falls'),
    LogKey('loss_vkd_feature', 'VkD: distance of the projected features', 'lower its weight', trend='falls'),
    LogKey('loss_vkd_logit', "VkD: divergence of the logits from the teacher's", 'lower its weight', trend='falls'),
    LogKey('loss_sokd_feature', "SoKD: distance of the features to the teacher's", 'lower its weight', trend='falls'),
    LogKey('loss_sokd_detection', "SoKD: error of the detection module's predictions", 'lower its weight', trend='falls'),
    LogKey('loss_sokd_area', 'SoKD: distance of the features in the areas', 'lower its weight', trend='falls'),
    LogKey('sokd_area', 'SoKD: share of the map that is an area', 'see `loss_sokd_area`', low=0, high=1),
    LogKey('sokd_probability', 'SoKD: how often the search augments', low=0, high=1),
    LogKey('loss_rtk_attention', 'RTK: the loss of the attention maps', 'lower its weight', trend='falls'),
    LogKey('rtk_top', 'RTK: how much of the attention the best key has', low=0, high=1),
)
LOG_KEYS: dict[str, tuple[LogKey, ...]] = dict(every=EVERY, losses=LOSSES, figures=FIGURES, rivals=RIVALS)
"""All keys by the group that the page shows them in."""
OWN = "the student's own, such as `loss_cls` or `decode.loss_ce`"


def find_log_key(name: str, added: Collection[str] = ()) -> LogKey | None:
    """Return the row of a name in the log, None for the student's own losses and whatever else a host logs.

    Args:
        name (str): The name.
        added (Collection[str]): The user's names of ``distill_losses``. Defaults to none.
    """
    if name in {f'loss_{own}' for own in added}:
        return USERS
    return next((row for group in LOG_KEYS.values() for row in group if row is not USERS and row.matches(name)), None)


def log_table(group: str) -> str:
    """Return a group's rows as a table of Markdown."""
    rows = [('key', 'what it is', 'healthy', 'what to do else'), ('---',) * 4]
    for row in LOG_KEYS[group]:
        rows.append((f'`{row.key}`', row.about, row.healthy, row.mend))
        if row.key == 'loss_student':
            own = (
                "as the host's own script logs them. A classifier's single loss, which its head calls `loss`, is `loss_student`"
            )
            rows.append((OWN, own, 'as in a plain training', ''))
    return '\n'.join(f'| {" | ".join(row)} |' for row in rows).replace('  |', ' |')
