"""What can be trained on: data sets with their teachers and students."""

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from mmengine.config import Config

from benchmarks.runner import ROOT
from benchmarks.variants import METHODS, VARIANTS, method_of
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
        holdout (dict): Settings that train on a part of the training images and validate on another.
        holdout_images (int): Size of the training part under ``holdout``.
        options (dict): Settings of every student, such as a smaller training part than the teacher's.
        own_teacher (str): Folder among work_dirs of a teacher trained with the same options; '' for that of the configs.
        own_teacher_options (dict): What is different in the options of that teacher.
        own_teacher_images (int): Size of that teacher's training part; 0 for that of its students.
        scale (float): What the logged metric is multiplied with: records are in percent, mmdet logs fractions.
        schedule (tuple): Where a student's config counts its epochs.
        interval (int): Epochs between validations and checkpoints of a student.
        amp (bool): Whether to train with ``--amp``. Two-stage detectors do not: a compiled mmcv has no bfloat16 for NMS.
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
    holdout: dict[str, str]
    holdout_images: int
    options: dict[str, str] = field(default_factory=dict)
    own_teacher: str = ''
    own_teacher_options: dict[str, str] = field(default_factory=dict)
    own_teacher_images: int = 0
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
        return Path('work_dirs') / (self.own_teacher or Path(self.teacher).stem) / f'epoch_{self.teacher_epochs}.pth'

    @property
    def teacher_epochs(self) -> int:
        """The budget of the teacher, by its own schedule."""
        return epochs_of(self.teacher)

    @property
    def teacher_options(self) -> dict[str, str]:
        """Settings of the teacher."""
        return self.options | self.own_teacher_options if self.own_teacher else {}

    @property
    def trains_alike(self) -> bool:
        """Whether ``holdout`` leaves the training as it is, so that a run is judged on both parts."""
        return all(key.startswith('val_dataloader.') for key in self.holdout)


@cache
def epochs_of(config: str) -> int:
    """The budget that a config names. Tables ask for it hundreds of times."""
    return Config.fromfile(ROOT / config).train_cfg.max_epochs


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
NUCLEI_TAUGHT = {'train_dataloader.dataset.indices': '-398'}
NUCLEI_HELD_OUT = {'val_dataloader.dataset.ann_file': 'train.txt', 'val_dataloader.dataset.indices': '133'}
NUCLEI = dict(
    task='seg',
    metric='mIoU',
    epochs=30,
    train_images=531,
    holdout=NUCLEI_TAUGHT | NUCLEI_HELD_OUT,
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
UNSEEN = 'training images that neither teacher nor students saw'
# Held-out images that the teacher has not seen either: on those that it has, whoever follows it closely does too well.
CIFAR_15K = dict(
    **IMAGES,
    train_images=15000,
    options={'train_dataloader.dataset.blocks': '[0,1,2]'},
    holdout={'val_dataloader.dataset.split': 'train', 'val_dataloader.dataset.blocks': '[3]'},
    holdout_images=15000,
    holdout_part=UNSEEN,
)


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
    'cifar100-subset-15k': Setting(
        **CIFAR_15K,
        **small_pair('resnet8-w16', 'resnet14-w32', 'cifar100-subset'),
        epochs=20,
        own_teacher='resnet14-w32_cifar100-subset-15k',
    ),
    # A quarter of the size, so that many seeds come near convergence.
    'cifar100-subset-w8': Setting(
        **CIFAR_15K,
        **small_pair('resnet8-w8', 'resnet14-w16', 'cifar100-subset'),
        epochs=24,
        own_teacher='resnet14-w16_cifar100-subset-15k',
        interval=4,
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
    # Its students see the first 10,000 images, their teacher the first 50,000, and neither the last ones, which are held out.
    'fashion-mnist-10k': Setting(
        **IMAGES,
        **small_pair('resnet8-w8', 'resnet14-w16', 'fashion-mnist'),
        epochs=12,
        train_images=10000,
        options={'train_dataloader.dataset.indices': '10000'},
        own_teacher='resnet14-w16_fashion-mnist-50k',
        own_teacher_options={'train_dataloader.dataset.indices': '50000'},
        own_teacher_images=50000,
        holdout={'val_dataloader.dataset.split': 'train', 'val_dataloader.dataset.indices': '-10000'},
        holdout_images=10000,
        holdout_part=UNSEEN,
        interval=2,
    ),
    'bccd-retinanet': Setting(**BCCD, **small_pair('retinanet_r18-w16', 'retinanet_r18-w32', 'bccd')),
    'bccd-retinanet-w8': Setting(**{**BCCD, 'epochs': 36}, **small_pair('retinanet_r18-w8', 'retinanet_r18-w32', 'bccd')),
    'bccd-fcos': Setting(**BCCD, **small_pair('fcos_r18-w16', 'fcos_r18-w32', 'bccd')),
    'bccd-faster-rcnn': Setting(
        **{**BCCD, 'epochs': 40, 'amp': False}, **small_pair('faster-rcnn_r18-w16', 'faster-rcnn_r18-w32', 'bccd')
    ),
    'dsb2018-fcn': Setting(
        **{**NUCLEI, 'epochs': 20, 'train_images': 398, 'holdout': NUCLEI_HELD_OUT, 'holdout_part': UNSEEN, 'interval': 4},
        **small_pair('fcn_r14-w8', 'fcn_r14-w32', 'dsb2018'),
        options=NUCLEI_TAUGHT,
        own_teacher='fcn_r14-w32_dsb2018-398',
    ),
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


def applicable(setting: Setting) -> list[str]:
    """Methods and variants that have settings for a data set, the teacher excepted."""
    names = [*METHODS, *VARIANTS]
    if setting.task != 'cls':
        # Dense tasks hash every location as they are.
        dense = [name for name, variant in VARIANTS.items() if 'model.site.dense' in variant.options]
        names = [name for name in names if not name.startswith('coupled') and name not in dense]
    if setting.task != 'det':
        names = [name for name in names if 'neck' not in name]
    pair = Config.fromfile(ROOT / setting.config('dskd'))
    fitting = {'plain', 'dskd', *(method for method in methods() if suits(method, pair))}
    return [name for name in names if method_of(name) in fitting]
