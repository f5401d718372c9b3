"""Knowledge distillation on the boxes of a detector."""

import torch
from torch import Tensor
from torch.nn import functional as F

from dskd_mm.distributed import mean_over_ranks
from dskd_mm.losses.base import DistillLoss, check_temperature
from dskd_mm.registry import MODELS
from dskd_mm.structures import ModelOutputs, TapSpec, Target

MAX_RATIO = 10
"""How many times as large as its teacher's a student's box may be before its own size is the unit."""


@MODELS.register_module()
class BoxLoss(DistillLoss):
    r"""What a student's boxes differ from its teacher's at foreground predictions.

    By the way in which a head encodes boxes:

    - 'delta' (offsets to anchors or proposals: RetinaNet, ATSS, Cascade R-CNN): the L1 distance of the four offsets (Chen et
      al. 2017, section 3.3, without its bound by the teacher's error);
    - 'class_delta' (the same, four for each class: Faster and Mask R-CNN): that of the annotated class;
    - 'distance' (to the four sides: FCOS, RTMDet): the L1 distance of the four, over the mean of the teacher's width and
      height, so that the unit does not matter, or over a tenth of the student's where the teacher's box has all but vanished.
      (Not 1 - IoU: that has no gradient while boxes are inside out, as RTMDet's may be.)
    - 'distribution' (of each distance: GFL): :math:`T^2\,KL`, averaged over the four sides and the bins (localization
      distillation, Zheng et al., CVPR 2022, arXiv 2102.12252, equation 4; the mean over the bins is that of mmdet's code,
      whose weight is 0.25).

    Args:
        temperature (float): T, for distributions. Defaults to 10.
        loss_weight (float): What the loss is multiplied with. Defaults to 1.

    Raises:
        ValueError: If the temperature is not positive, or the weight negative.
    """

    def __init__(self, temperature: float = 10.0, loss_weight: float = 1.0) -> None:
        super().__init__(loss_weight)
        self.temperature = check_temperature(self, temperature)
        self.kind = ''

    def bind(self, student: TapSpec, teacher: TapSpec, name: str) -> None:
        """See :meth:`DistillLoss.bind`."""
        if not student.boxes or student.boxes != teacher.boxes:
            raise ValueError(
                f'{name} ({type(self).__name__}) compares boxes of one encoding, but the student of this site has '
                f'{student.boxes or "none"}, the teacher {teacher.boxes or "none"}: it is for detectors of one family. A dense '
                'head whose teacher has an input_size has none to compare, as its boxes are in units of larger images. Leave '
                f'it out: model.{name}=None.'
            )
        self.kind = student.boxes.kind

    def compare_outputs(
        self, student: ModelOutputs, teacher: ModelOutputs, target: Target | None, generator: torch.Generator | None = None
    ) -> Tensor:
        """See :meth:`DistillLoss.compare_outputs`."""
        return self(student.boxes, teacher.boxes, target, self.kind)

    def forward(self, student: Tensor, teacher: Tensor, label: Target, kind: str, sure: Tensor | None = None) -> Tensor:
        """Compare two sets of boxes.

        Args:
            student (Tensor): The student's, (B, P, M) or (B, P): P is 4, or 4 times the classes or the bins of a distribution.
                In the graph.
            teacher (Tensor): The teacher's, of the same shape and encoding.
            label (Target): The annotations, (B, K, M) or (B, K), which tell foreground and what it is divided by.
            kind (str): 'delta', 'class_delta', 'distance' or 'distribution'.
            sure (Tensor, optional): How much each prediction counts, (B, M) or (B, ), instead of foreground predictions alone,
                as in CrossKD. Defaults to None.

        Returns:
            Tensor: A scalar, summed over the predictions that count and divided by :meth:`Target.normalizer`, distributions
            with ``sure`` by its sum.

        Raises:
            ValueError: If the shapes differ or do not fit the kind.
        """
        difference = self._differences(student, teacher, label, kind)
        counts = (label.foreground > 0).float().amax(dim=1) if sure is None else sure
        if label.weight is not None:
            counts = counts * (label.weight[:, 0] > 0)
        is_mean = sure is not None and kind == 'distribution'
        total = mean_over_ranks(counts.sum()).clamp(min=1e-6) if is_mean else label.normalizer()
        return self.loss_weight * (difference * counts).sum() / total

    def _differences(self, student: Tensor, teacher: Tensor, label: Target, kind: str) -> Tensor:
        """Return what each prediction's box differs by, (B, M) or (B, ); see :meth:`forward`."""
        length = 4 * label.foreground.shape[1] if kind == 'class_delta' else 4
        fits = student.shape[1] % 4 == 0 if kind == 'distribution' else student.shape[1] == length
        if student.shape != teacher.shape or not fits:
            numbers = '4 n' if kind == 'distribution' else length
            raise ValueError(
                f'Boxes of kind {kind!r} are expected in equal shapes with {numbers} numbers each, but got '
                f'{tuple(student.shape)} of the student and {tuple(teacher.shape)} of the teacher. Give both heads the same '
                'encoding of boxes, or leave them out: loss_weights=dict(box=0), or None for a loss of distill_losses.'
            )
        student, teacher = student.float(), teacher.float()
        if kind == 'delta':
            return (student - teacher).abs().sum(dim=1)
        if kind == 'class_delta':
            each = (student - teacher).abs().unflatten(1, (-1, 4)).sum(dim=2)
            return (each * (label.foreground > 0)).sum(dim=1)
        if kind == 'distance':
            size, own = (boxes.detach().abs().sum(dim=1) / 2 for boxes in (teacher, student))
            size = torch.maximum(size, own / MAX_RATIO).clamp(min=torch.finfo(size.dtype).tiny)
            return (student - teacher).abs().sum(dim=1) / size
        ours, theirs = (x.unflatten(1, (4, -1)) / self.temperature for x in (student, teacher))
        divergence = F.kl_div(ours.log_softmax(dim=2), theirs.log_softmax(dim=2), reduction='none', log_target=True)
        return divergence.mean(dim=(1, 2)) * self.temperature**2
