"""Knowledge distillation on the boxes of a detector."""

from torch import Tensor, nn
from torch.nn import functional as F

from dskd_mm.guidance import Target
from dskd_mm.losses.base import check_weight
from dskd_mm.registry import MODELS


@MODELS.register_module()
class BoxLoss(nn.Module):
    r"""What a student's boxes differ from its teacher's at foreground predictions.

    By the way in which a head encodes boxes:

    - 'delta' (offsets to anchors: RetinaNet, ATSS): the L1 distance of the four offsets (Chen et al. 2017, section 3.3, without
      its bound by the teacher's error);
    - 'distance' (to the four sides: FCOS, RTMDet): :math:`1-IoU`, which does not depend on the unit;
    - 'distribution' (of each distance: GFL): :math:`T^2\,KL`, averaged over the four sides (localization distillation, Zheng et
      al., CVPR 2022, arXiv 2102.12252, equation 4).

    Args:
        temperature (float): T, for distributions. Defaults to 10.
        loss_weight (float): What the loss is multiplied with. Defaults to 1.

    Raises:
        ValueError: If the temperature is not positive, or the weight negative.
    """

    def __init__(self, temperature: float = 10.0, loss_weight: float = 1.0) -> None:
        super().__init__()
        if temperature <= 0:
            raise ValueError(f'temperature of BoxLoss must be positive, but got {temperature}.')
        self.temperature = temperature
        self.loss_weight = check_weight(self, loss_weight)

    def forward(self, student: Tensor, teacher: Tensor, label: Target, kind: str) -> Tensor:
        """Compare two sets of boxes.

        Args:
            student (Tensor): The student's, (B, P, M): P is 4, or 4 times the bins of a distribution. In the graph.
            teacher (Tensor): The teacher's, of the same shape and encoding.
            label (Target): The annotations (B, K, M), which tell foreground and what it is divided by.
            kind (str): 'delta', 'distance' or 'distribution'.

        Returns:
            Tensor: A scalar, summed over foreground predictions and divided by :meth:`Target.normalizer`.

        Raises:
            ValueError: If the shapes differ or do not fit the kind.
        """
        if student.shape != teacher.shape or student.shape[1] % 4 or (kind != 'distribution' and student.shape[1] != 4):
            raise ValueError(
                f'Boxes of kind {kind!r} are expected in equal shapes (B, 4, M), or (B, 4 n, M) for distributions, but got '
                f'{tuple(student.shape)} of the student and {tuple(teacher.shape)} of the teacher. Give both heads the same '
                "encoding of boxes, or leave them out with loss_weights=dict(box=0)."
            )
        student, teacher = student.float(), teacher.float()
        foreground = (label.probability.amax(dim=1) > 0).float()
        if label.weight is not None:
            foreground = foreground * (label.weight[:, 0] > 0)
        if kind == 'delta':
            difference = (student - teacher).abs().sum(dim=1)
        elif kind == 'distance':
            difference = 1 - side_iou(student, teacher)
        else:
            ours, theirs = (x.unflatten(1, (4, -1)) / self.temperature for x in (student, teacher))
            divergence = F.kl_div(ours.log_softmax(dim=2), theirs.log_softmax(dim=2), reduction='none', log_target=True)
            difference = divergence.sum(dim=2).mean(dim=1) * self.temperature**2
        return self.loss_weight * (difference * foreground).sum() / label.normalizer()


def side_iou(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union of boxes around the same point.

    Args:
        first (Tensor): Distances to the left, top, right and bottom side, (B, 4, M).
        second (Tensor): Likewise.

    Returns:
        Tensor: (B, M); boxes of no area have 0 with each other.
    """
    first, second = first.clamp(min=0), second.clamp(min=0)

    def area(sides: Tensor) -> Tensor:
        left, top, right, bottom = sides.unbind(dim=1)
        return (left + right) * (top + bottom)

    common = area(first.minimum(second))
    return common / (area(first) + area(second) - common).clamp(min=1e-6)
