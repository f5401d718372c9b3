"""LSHFM: mimicking the teacher's features by locality-sensitive hashing."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from dskd_mm.distillers.base import Distiller, HeadLoss
from dskd_mm.distillers.hashing import check_projection, hash_levels
from dskd_mm.distillers.options import MethodOptions
from dskd_mm.features import ChannelAlign, Pyramid, align_levels, per_width
from dskd_mm.losses import LSHDistillLoss
from dskd_mm.registry import MODELS, build
from dskd_mm.sites import Site
from dskd_mm.structures import ModelOutputs, TapSpec, Target

OBJECTS = dict(beta=7.0, lsh=dict(bits=4096))
SEVERAL_LABELS: dict[str, Any] = dict(beta=3.0, lsh=dict(bias='median'))


@dataclass(kw_only=True)
class LSHFMOptions(MethodOptions):
    """Options of :class:`LSHFMDistiller`; defaults are the paper's settings, see there.

    Attributes:
        beta (float): Weight of the loss. Defaults to 5, 3 for images of several labels, 7 for detectors.
        correct_only (bool): Whether only vectors count that the teacher classifies correctly, the paper's ``_S``. It needs
            exclusive classes and one prediction for each vector. Defaults to False.
        align (dict): Arguments of :class:`~dskd_mm.features.ChannelAlign`. Defaults to a 1x1 convolution without a norm,
            nothing if the channels are equal.
        lsh (dict): Arguments of :class:`~dskd_mm.losses.LSHDistillLoss`; ``magnitude=0`` leaves out the mean squared error.
            The standard deviation of the hash functions is that of the teacher's classifier; a neck has none, so there it is 1
            unless given. Defaults to 2,048 bits without bias, 4,096 for detectors, the median for images of several labels.
    """

    task_defaults: ClassVar[Mapping[str, Mapping[str, Any]]] = dict(dense_detection=OBJECTS, two_stage_detection=OBJECTS)
    merged: ClassVar[tuple[str, ...]] = ('lsh',)

    beta: float = 5.0
    correct_only: bool = False
    align: dict | None = None
    lsh: Any = None

    @classmethod
    def defaults(cls, given: Mapping[str, Any], site: Site, student: TapSpec, teacher: TapSpec) -> dict[str, Any]:
        """See :meth:`MethodOptions.defaults`."""
        values = super().defaults(given, site, student, teacher)
        row: dict[str, Any] = SEVERAL_LABELS if teacher.sigmoid and site.task == 'classification' else {}
        lsh: dict[str, Any] = dict(bits=2048, bias='zero', magnitude=1.0)
        lsh = lsh | (values['lsh'] or {}) | row.get('lsh', {})
        return values | row | dict(lsh=lsh)

    def check(self, owner: str, site: Site, student: TapSpec, teacher: TapSpec) -> None:
        """See :meth:`MethodOptions.check`."""
        super().check(owner, site, student, teacher)
        if self.beta < 0:
            raise ValueError(f'{owner} expects beta >= 0, but got beta={self.beta}.')
        check_projection(owner, self.lsh, site, teacher)
        if self.correct_only and (not teacher.classifiers or teacher.sigmoid or teacher.num_priors > 1):
            raise ValueError(
                f'correct_only of {owner} expects one prediction of exclusive classes for each vector, but the teacher at '
                f'{type(site).__name__} makes {teacher.num_priors if teacher.classifiers else 0} with '
                f'{"independent" if teacher.sigmoid else "exclusive"} classes: set correct_only=False.'
            )


@MODELS.register_module()
class LSHFMDistiller(Distiller):
    r"""Distilling Knowledge by Mimicking Features (Wang, Ge & Wu, TPAMI 2021, arXiv 2011.01424).

    The hash of the student's feature should be that of the teacher's, and its length the teacher's, too:
    :math:`\beta(L_{mse} + L_{LSH})`, see :class:`~dskd_mm.losses.LSHDistillLoss`; logged as ``loss_lshfm_mimic``, with the
    share of bits that agree as ``lshfm_bits``. What is compared are the vectors that enter the classifier: one for each
    image (the average of its map), for each sampled proposal, or for each location, there with its neighbours if the
    classifier is a k x k convolution. A linear layer maps the student's channels to the teacher's where they differ.

    Defaults are the paper's settings: of ImageNet for images (:math:`\beta=5`, 2,048 bits), of COCO for images of several
    labels (3, median), and those of its detectors (7, 4,096 bits). The one of CIFAR-100 is
    ``beta=6, lsh=dict(bits=32 * D, bias='median')`` for D channels of the teacher.

    Deviations: the linear layer is the distiller's and leaves with it, where the authors' students of other widths are built
    with it and classify what it gives; all vectors count, where the authors' scripts take those that the teacher classifies
    correctly (``correct_only=True``) unless told otherwise; detectors are trained in one go, the paper's in two; the hash
    functions have the standard deviation of the teacher's classification weights, where the paper's
    setting for ImageNet fixes it (0.06 with a ResNet-34 as teacher, 0.03 with a ResNet-101: ``lsh=dict(std=0.06)``); the
    biases 'mean' and 'median' are running averages over batches instead of statistics of the training set; dense detectors
    hash 256 locations of an image, every class with the same chance, instead of all (``site=dict(vectors_per_image=None)``
    hashes all); segmentation and necks, which the paper has not, take the setting of images.

    Args:
        student (dict | nn.Module): The student: a host's model.
        teacher (dict): ``dict(config=..., checkpoint=...)``, see :class:`~dskd_mm.teacher.FrozenTeacher`.
        kwargs: Arguments of :class:`Distiller` and fields of :class:`LSHFMOptions`.

    Raises:
        ValueError: If ``beta`` is negative, or ``correct_only`` has no meaning at the site.
    """

    options_class = LSHFMOptions
    options: LSHFMOptions
    compares_with_teacher = True

    def __init__(self, student: dict | nn.Module, teacher: dict, **kwargs: Any) -> None:
        super().__init__(student, teacher, **kwargs)
        options, own, channels = self.options, self.student_spec.channels, self.teacher_spec.channels
        # 3 for RetinaNet as in the paper: nine times the memory of the features.
        self.side = kernel_size(self.student, self.student_spec.classifiers)
        align = dict(kind='identity' if own == channels else 'conv', norm=None) | (options.align or {})
        self.align = per_width(partial(build, ChannelAlign, align), in_channels=own, out_channels=channels)
        # Levels of several widths have no classifier, and with it no neighbours.
        length = channels if isinstance(channels, tuple) else channels * self.side**2
        self.lsh: Any = per_width(partial(build, LSHDistillLoss, options.lsh), in_channels=length)

    def load_teacher(self) -> None:
        """See :meth:`Distiller.load_teacher`."""
        super().load_teacher()
        if self.teacher.classifiers:
            # Vectors with neighbours are seen by a kernel as a whole; F.unfold orders both alike.
            weights = [c.weight.flatten(1) if self.side > 1 else c.weight for c in self.teacher.classifiers]
            own, theirs = self.lsh.projection.shape[1], {weight.shape[1] for weight in weights}
            if self.lsh.project and theirs != {own}:
                raise ValueError(
                    f'lsh=dict(project={self.lsh.project!r}) of {type(self).__name__} expects kernels of one size in the '
                    f"classifiers of student and teacher, but vectors have {own} numbers, and the teacher's see "
                    f'{", ".join(map(str, sorted(theirs)))}: leave project out.'
                )
            self.lsh.set_classifier(*weights, sigmoid=self.teacher.classifiers[0].sigmoid)

    def distill(self, student: ModelOutputs, teacher: Any, target: Any, head_loss: HeadLoss) -> dict[str, Tensor]:
        """See :meth:`Distiller.distill`."""
        pyramid, aligned = align_levels(self.align, student.features)
        aligned, generator = aligned.float(), self.noise_generator(aligned.device)
        packed = [self._neighbourhoods(pyramid, tensor) for tensor in (aligned, Pyramid.pack(teacher.features))]
        hits = is_correct(teacher.logits, target) if self.options.correct_only else None
        loss, agreement = hash_levels(self.lsh, self.site, pyramid, packed, hits, target, generator)
        # Without any vector φ must still be in the graph: DDP waits for every parameter.
        return {'loss_lshfm_mimic': self.options.beta * loss + aligned.sum() * 0, 'lshfm_bits': agreement}

    def _neighbourhoods(self, pyramid: Pyramid, packed: Tensor) -> Tensor:
        """Return the features of (B, C, N) with those around them, (B, C * side**2, N); zeros beyond the border."""
        side = self.side
        if side == 1:
            return packed
        return pyramid.map(lambda level: F.unfold(level, side, padding=side // 2).unflatten(2, level.shape[2:]), packed)


def is_correct(logits: Tensor, target: Target) -> Tensor:
    """Return whether the most likely class is the annotated one: the main one of mixed images.

    Args:
        logits (Tensor): (B, K) or (B, K, M).
        target (Target): The annotations, of the same shape.

    Returns:
        Tensor: 1 or 0, (B, 1, 1) or (B, 1, M), float32; 0 without any class.
    """
    hits = target.main_classes().gather(1, logits.argmax(dim=1, keepdim=True)).float()
    return hits.flatten(2) if hits.ndim > 2 else hits[:, :, None]


def kernel_size(model: nn.Module, classifiers: tuple[str, ...]) -> int:
    """Return the side of a model's classification convolution, 1 for a linear layer or none."""
    layers = [model.get_submodule(path) for path in classifiers]
    return max((layer.kernel_size[0] for layer in layers if isinstance(layer, nn.Conv2d)), default=1)
