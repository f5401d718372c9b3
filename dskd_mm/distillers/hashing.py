"""What is hashed: the loss over the levels of a site, whatever their widths, and how near it is to the teacher's."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from dskd_mm.features import Pyramid, match_moments, modules_of
from dskd_mm.sites import Site
from dskd_mm.structures import TapSpec, Target


def check_projection(owner: str, lsh: Mapping[str, Any], site: Site, teacher: TapSpec) -> None:
    """Refuse to hash what a classifier cannot see where there is none.

    Raises:
        ValueError: If ``lsh`` says so.
    """
    if lsh.get('project') and not teacher.classifiers:
        raise ValueError(
            f'lsh=dict(project={lsh["project"]!r}) of {owner} expects a linear classifier of the teacher, but '
            f'{type(site).__name__} has none: leave project out.'
        )


def hash_levels(
    lsh: nn.Module,
    site: Site,
    pyramid: Pyramid,
    packed: Sequence[Tensor],
    counts: Tensor | None,
    target: Target | None,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Return the hash loss of packed features and the share of bits that agree, means over the widths of the levels.

    Args:
        lsh (nn.Module): A :class:`~dskd_mm.losses.LSHDistillLoss`, one for each width if these differ.
        site (Site): Chooses the vectors that are hashed.
        pyramid (Pyramid): The levels.
        packed (Sequence[Tensor]): Features to train, and those to mimic.
        counts (Tensor, optional): What counts, see :meth:`Site.counted_vectors`.
        target (Target, optional): The annotations.
        generator (torch.Generator): Where a random choice comes from.
    """
    found = []
    for own, (_, features) in zip(modules_of(lsh), pyramid.by_width(*packed), strict=True):
        vectors, weight = site.counted_vectors(features, counts, target, generator)
        found.append(own(*vectors, weight))
    loss, agreement = means(found)
    return loss, agreement


def hashed_cosines(
    site: Site,
    pyramid: Pyramid,
    packed: Sequence[Tensor],
    teacher: Tensor,
    target: Target | None,
    generator: torch.Generator,
) -> list[Tensor]:
    """Return how near what is hashed of features is to what would be hashed of the teacher's.

    It is the cosine of both vectors less the teacher's mean, a mean over vectors and widths. Each channel is brought to the
    mean and the deviation that it has in the teacher's vectors first, so that no scale matters.

    Args:
        site (Site): Chooses the vectors, the same of all.
        pyramid (Pyramid): The levels.
        packed (Sequence[Tensor]): Features to judge, (B, C, N).
        teacher (Tensor): The teacher's, of that shape.
        target (Target, optional): The annotations.
        generator (torch.Generator): Where a random choice comes from.

    Returns:
        list[Tensor]: For each of them a scalar between -1 and 1.
    """
    found = []
    for _, features in pyramid.by_width(*packed, teacher):
        vectors, weight = site.hash_vectors(features, target, generator)
        *others, theirs = (each[..., None] for each in vectors)
        center = theirs.mean(dim=0)
        weight = theirs.new_ones(len(theirs)) if weight is None else weight
        cosines = [F.cosine_similarity(match_moments(each, theirs) - center, theirs - center, dim=1) for each in others]
        found.append([cosine[:, 0] @ weight / weight.sum().clamp(min=1) for cosine in cosines])
    return means(found)


def means(found: Sequence[Sequence[Tensor]]) -> list[Tensor]:
    """Return the mean of each of some values over the widths of the levels."""
    return [sum(each[1:], each[0]) / len(each) for each in zip(*found, strict=True)]
