"""What can be trained: data sets with their teachers and students, methods, and variants of methods."""

from dataclasses import dataclass, field
from pathlib import Path

from mmengine.config import Config

from benchmarks.runner import ROOT
from dskd_mm.utils.methods import apply_method, methods, suits


@dataclass(frozen=True)
class Setting:
    """One data set with a teacher and a student.

    Attributes:
        task (str): 'cls', 'det' or 'seg'.
        pair (str): '<student> <teacher>', the field's order.
        student (str): Config of the plain student.
        teacher (str): Config of the teacher.
        distilled (str): Name of the config of the pair in configs/dskd.
        metric (str): Key of the metric in the logs.
        epochs (int): Default budget of a student: that of the table of all methods, where there is one.
        train_images (int): Size of the training part.
        options (dict): Settings of every student, such as a smaller training part than the teacher's.
        own_teacher (str): Folder among work_dirs of a teacher trained with the same options; '' for that of the configs.
        holdout (dict): Settings that train on a part of the training images and validate on another.
        holdout_images (int): Size of the training part under ``holdout``.
        scale (float): What the logged metric is multiplied with: records are in percent, mmdet logs fractions.
        schedule (tuple): Where a student's config counts its epochs.
        interval (int): Epochs between validations and checkpoints of a student.
        amp (bool): Whether to train with ``--amp``. Two-stage detectors do not: NMS and RoIAlign have no bfloat16 on CPUs.
        unit (str): The metric's name in tables.
        test_part (str): What 'test' is in captions.
        holdout_part (str): What 'holdout' is in captions.
    """

    task: str
    pair: str
    student: str
    teacher: str
    distilled: str
    metric: str
    epochs: int
    train_images: int
    options: dict[str, str] = field(default_factory=dict)
    own_teacher: str = ''
    holdout: dict[str, str] = field(default_factory=dict)
    holdout_images: int = 0
    scale: float = 1
    schedule: tuple[str, ...] = ('train_cfg.max_epochs', 'param_scheduler.T_max', 'param_scheduler.end')
    interval: int = 5
    amp: bool = True
    unit: str = 'top-1'
    test_part: str = 'the official test images'
    holdout_part: str = 'held-out training images'

    def config(self, method: str) -> str:
        """Config of a run under a method."""
        return {'plain': self.student, 'teacher': self.teacher}.get(method, f'configs/dskd/{self.distilled}')

    def flags(self, method: str) -> list[str]:
        """What the tools are told beside the config."""
        return [] if method in ('plain', 'teacher', 'dskd') else ['--method', method]

    def whole_config(self, method: str) -> Config:
        """What :meth:`config` and :meth:`flags` are together."""
        cfg = Config.fromfile(ROOT / self.config(method))
        return apply_method(cfg, method) if self.flags(method) else cfg

    @property
    def teacher_checkpoint(self) -> Path:
        """Where its students find the teacher: unless it is one of their own, where their configs look for it."""
        epochs = Config.fromfile(ROOT / self.teacher).train_cfg.max_epochs
        return Path('work_dirs') / (self.own_teacher or Path(self.teacher).stem) / f'epoch_{epochs}.pth'

    @property
    def teacher_options(self) -> dict[str, str]:
        """Settings of the teacher."""
        return self.options if self.own_teacher else {}

    @property
    def trains_alike(self) -> bool:
        """Whether ``holdout`` leaves the training as it is, so that a run is judged on both parts."""
        return bool(self.holdout) and all(key.startswith('val_dataloader.') for key in self.holdout)


# The schedules of configs/_base_/schedules/adamw_*.py: a warm-up, then the cosine.
WARMED_UP = ('train_cfg.max_epochs', 'param_scheduler.1.T_max', 'param_scheduler.1.end')
BCCD = dict(
    task='det',
    metric='coco/bbox_mAP',
    epochs=60,
    train_images=205,
    # The data come with a validation part of their own.
    holdout={'val_dataloader.dataset.ann_file': 'coco/val.json'},
    holdout_images=205,
    scale=100,
    schedule=WARMED_UP,
    interval=10,
    unit='mAP',
    holdout_part='the official validation images',
)
NUCLEI = dict(
    task='seg',
    metric='mIoU',
    epochs=30,
    train_images=531,
    holdout={
        'train_dataloader.dataset.indices': '-398',
        'val_dataloader.dataset.ann_file': 'train.txt',
        'val_dataloader.dataset.indices': '133',
    },
    holdout_images=398,
    schedule=WARMED_UP,
    interval=10,
    unit='mIoU',
    test_part='the validation images',
)
NUCLEUS_INSTANCES = {
    **NUCLEI,
    'task': 'det',
    'metric': 'coco/segm_mAP',
    'epochs': 10,
    'holdout': {**NUCLEI['holdout'], 'val_dataloader.dataset.ann_file': 'annotations/instances_train.json'},
    'scale': 100,
    'amp': False,
    'unit': 'mask mAP',
}
IMAGES = dict(task='cls', metric='accuracy/top1')


def small_pair(student: str, teacher: str, data: str) -> dict[str, str]:
    """The fields of a setting that follow from the names of its configs."""
    width = teacher.split('_')[-1].replace('resnet', 'r')
    return dict(
        pair=f'{student} {teacher}',
        student=f'configs/plain/{student}_{data}.py',
        teacher=f'configs/plain/{teacher}_{data}.py',
        distilled=f'{student}_{width}_{data}.py',
    )


SETTINGS = {
    'cifar100-subset': Setting(
        **IMAGES,
        **small_pair('resnet8-w16', 'resnet14-w32', 'cifar100-subset'),
        epochs=8,
        train_images=20000,
        holdout={
            'train_dataloader.dataset.blocks': '[0,1]',
            'val_dataloader.dataset.split': 'train',
            'val_dataloader.dataset.blocks': '[3]',
        },
        holdout_images=10000,
    ),
    # Held-out images that the teacher has not seen either: on those that it has, whoever follows it closely does too well.
    'cifar100-subset-15k': Setting(
        **IMAGES,
        **small_pair('resnet8-w16', 'resnet14-w32', 'cifar100-subset'),
        epochs=20,
        train_images=15000,
        options={
            'train_dataloader.dataset.blocks': '[0,1,2]',
            'val_dataloader.dataset.split': 'train',
            'val_dataloader.dataset.blocks': '[3]',
        },
        own_teacher='resnet14-w32_cifar100-subset-15k',
        test_part='training images that neither teacher nor students saw',
    ),
    'fashion-mnist': Setting(
        **IMAGES,
        **small_pair('resnet8-w8', 'resnet14-w16', 'fashion-mnist'),
        epochs=5,
        train_images=60000,
        holdout={
            'train_dataloader.dataset.indices': '10000',
            'val_dataloader.dataset.split': 'train',
            'val_dataloader.dataset.indices': '-10000',
        },
        holdout_images=10000,
    ),
    # The teacher has seen all training images, its students a sixth of them.
    'fashion-mnist-10k': Setting(
        **IMAGES,
        **small_pair('resnet8-w8', 'resnet14-w16', 'fashion-mnist'),
        epochs=12,
        train_images=10000,
        options={'train_dataloader.dataset.indices': '10000'},
    ),
    'bccd-retinanet': Setting(**BCCD, **small_pair('retinanet_r18-w16', 'retinanet_r18-w32', 'bccd')),
    'bccd-retinanet-w8': Setting(**{**BCCD, 'epochs': 36}, **small_pair('retinanet_r18-w8', 'retinanet_r18-w32', 'bccd')),
    'bccd-fcos': Setting(**BCCD, **small_pair('fcos_r18-w16', 'fcos_r18-w32', 'bccd')),
    'bccd-faster-rcnn': Setting(
        **{**BCCD, 'epochs': 40, 'amp': False}, **small_pair('faster-rcnn_r18-w16', 'faster-rcnn_r18-w32', 'bccd')
    ),
    'dsb2018-fcn': Setting(**{**NUCLEI, 'epochs': 20}, **small_pair('fcn_r14-w8', 'fcn_r14-w32', 'dsb2018')),
    'dsb2018-pspnet': Setting(**NUCLEI, **small_pair('pspnet_r14-w8', 'pspnet_r14-w32', 'dsb2018')),
    'dsb2018-deeplabv3': Setting(**NUCLEI, **small_pair('deeplabv3_r14-w8', 'deeplabv3_r14-w32', 'dsb2018')),
    'dsb2018-mask-rcnn': Setting(**NUCLEUS_INSTANCES, **small_pair('mask-rcnn_r14-w16', 'mask-rcnn_r14-w32', 'dsb2018')),
}

SUITES = {
    'cls': ('cifar100-subset', 'fashion-mnist-10k'),
    'det': ('bccd-retinanet-w8',),
    'seg': ('dsb2018-fcn',),
}
"""The data sets on which a task's methods are compared."""

METHODS = {
    'teacher': 'teacher',
    'plain': 'plain student',
    'kd': 'KD',
    'dkd': 'DKD',
    'dist': 'DIST',
    'fitnet': 'FitNet',
    'at': 'AT',
    'cwd': 'CWD',
    'pkd': 'PKD',
    'mgd': 'MGD',
    'lshfm': 'LSHFM',
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


NO_DIFFUSION = {'model.loss_weights.lsh': '0', 'model.loss_weights.virtual': '0'}
NO_LOGIT = {'model.loss_weights.logit': '0'}
LABEL = {'model.target': 'label'}
LOCAL = {'model.target': 'local'}
TEACHER_PRIOR = {'model.prior': 'teacher'}
DENSE_HASH = {'model.site.dense': 'True'}
# The levels of the neck of retinanet_r18-w8 and its teacher.
NECK = {
    **{f'model.layers.neck.{owner}.path': 'neck' for owner in ('student', 'teacher')},
    **{f'model.layers.neck.{owner}.index': 'all' for owner in ('student', 'teacher')},
    'model.layers.neck.student.channels': '16',
    'model.layers.neck.teacher.channels': '64',
}


def sampling(start: float, scale: float) -> dict[str, str]:
    """Options of a sampler."""
    return {'model.sampler.start': str(start), 'model.sampler.scale': str(scale)}


VARIANTS = {
    'label': Variant('label guidance, no logit loss (teacher-free)', {**LABEL, **NO_LOGIT}),
    'no-guidance': Variant('guidance off', {'model.sampler.scale': '0'}),
    'no-lsh': Variant('LSH off', {'model.loss_weights.lsh': '0'}),
    'no-virtual': Variant('virtual teacher off', {'model.loss_weights.virtual': '0'}),
    'no-anchor': Variant('anchor off', {'model.loss_weights.anchor': '0'}),
    'no-logit': Variant('logit loss off', NO_LOGIT),
    'no-channel': Variant('channel loss off', {'model.loss_weights.channel': '0'}),
    'no-box': Variant('box loss off', {'model.loss_weights.box': '0'}),
    'strong-box': Variant('box loss three times as strong', {'model.loss_weights.box': '3'}),
    'prior-teacher': Variant('prior: teacher features', TEACHER_PRIOR),
    'strong-guidance': Variant('guidance five times as strong', {'model.sampler.scale': '5'}),
    'early-start': Variant('sampling from t=160 instead of t=400, guidance 8: equal in total', sampling(0.2, 8)),
    'early-start-strong-guidance': Variant(
        'sampling from t=160, guidance 32: four times as strong in total', sampling(0.2, 32)
    ),
    'no-noise': Variant('the same, but started without noise', {**sampling(0.2, 32), 'model.sampler.noise': 'none'}),
    'clean-guidance': Variant('guidance at the predicted clean feature', {'model.sampler.guidance_point': 'clean'}),
    'local': Variant('target: the teacher at every location', LOCAL),
    'local-dense-prior-teacher': Variant(
        'target: the teacher at every location; prior: teacher features, every location hashed',
        {**LOCAL, **TEACHER_PRIOR, **DENSE_HASH},
    ),
    'dense-prior-teacher': Variant('prior: teacher features, every location hashed', {**TEACHER_PRIOR, **DENSE_HASH}),
    'align-no-norm': Variant('φ without a norm', {'model.align.norm': 'None'}),
    'strong-lsh': Variant('LSH five times as strong', {'model.loss_weights.lsh': '5'}),
    # Dense tasks begin with little noise; this is where images begin.
    'middle-start': Variant('sampling from t=400, guidance 1, as for images', sampling(0.5, 1)),
    # What bounds the cost of large maps; those of these data sets are small.
    'window-8': Variant('8x8 locations of a level are seen', {'model.window': '8'}),
    'guidance-once': Variant('guidance evaluated once', {'model.sampler.guidance_interval': '5'}),
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
    'dist-t4': Variant('DIST, τ = 4', {'model.distill_losses.dist.temperature': '4'}, 'dist'),
    'fitnet-w10': Variant('FitNet, weight 10', {'model.distill_losses.fitnet.loss_weight': '10'}, 'fitnet'),
    'kd-t4': Variant('KD, temperature 4', {'model.distill_losses.kd.temperature': '4'}, 'kd'),
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


def method_of(name: str) -> str:
    """The method of a variant; a method's name is that of its default."""
    return VARIANTS[name].method if name in VARIANTS else name


def label_of(name: str) -> str:
    """A variant's name in tables."""
    return VARIANTS[name].label if name in VARIANTS else METHODS[name]


def applicable(setting: Setting) -> list[str]:
    """Methods and variants that have settings for a data set, the teacher excepted."""
    names = [*METHODS, *VARIANTS]
    if setting.task != 'cls':
        names = [name for name in names if not name.startswith('coupled')]
    pair = Config.fromfile(ROOT / setting.config('dskd'))
    fitting = {'plain', 'dskd', *(method for method in methods() if suits(method, pair))}
    return [name for name in names if method_of(name) in fitting]
