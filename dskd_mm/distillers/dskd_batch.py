"""What DSKD works on in a step."""

from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from dskd_mm.distributed import mean_over_ranks
from dskd_mm.features import Pyramid, match_moments
from dskd_mm.guidance import TeacherGuide
from dskd_mm.structures import ModelOutputs, Target


@dataclass
class AlignedBatch:
    """The features of a batch in the teacher's channels, and what belongs to them.

    Attributes:
        pyramid (Pyramid): The levels of the features.
        aligned (Tensor): z = φ(F_s), the student's feature in the teacher's channels, packed (B, C, N), float32.
        guide (TeacherGuide): The teacher as a guide.
        student (ModelOutputs): The student's outputs, those in the window if there is one.
        teacher (ModelOutputs, optional): Likewise the teacher's.
        target (Target, optional): Likewise the annotations.
    """

    pyramid: Pyramid
    aligned: Tensor
    guide: TeacherGuide
    student: ModelOutputs
    teacher: ModelOutputs | None
    target: Target | None

    def match_teacher(self) -> Tensor | None:
        """Return the teacher's feature, each channel brought to z's moments over all processes, (B, C, N); None without."""
        if self.teacher is None:
            return None
        packed = Pyramid.pack(self.teacher.features).float(), self.aligned.detach()
        return self.pyramid.over_widths(partial(match_moments, joined=True), *packed)


def gated(target: Target, gate: Tensor) -> Target:
    """Return annotations of which some samples do not count, (B, ) of 1 and 0; the others count for no more than before."""
    shape = len(gate), 1, *target.probability.shape[2:]
    weight = gate.reshape(-1, *[1] * (len(shape) - 1)).expand(shape)
    return replace(target, weight=target.apply_weight(weight), avg_factor=target.normalizer())


def share_of(gate: Tensor) -> Tensor:
    """Return the share of the samples of all processes, (B, ) of 1 and 0, that are 1; 0 without samples."""
    count, total = mean_over_ranks(torch.stack([gate.sum(), torch.full_like(gate.sum(), len(gate))]))
    return count / total.clamp(min=1)
