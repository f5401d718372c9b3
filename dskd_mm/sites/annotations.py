"""Reading annotations: refusing wrong ones, what a head assigned to its predictions, and drawing locations by class."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from dskd_mm.structures import Target


def check_annotated(data_samples: Sequence[Any], *names: str) -> None:
    """Verify that samples have the annotations that a task learns from.

    Args:
        data_samples (Sequence): The samples.
        *names (str): The field of the host's samples; of several, one will do.

    Raises:
        ValueError: If one has none.
    """
    for i, sample in enumerate(data_samples):
        if all(name not in sample for name in names):
            raise ValueError(
                f'Sample {i} ({sample.get("img_path", "image in memory")}) is expected to be annotated with '
                f'{" or ".join(names)}, but it has only {sorted(sample.keys())}. Load annotations in the pipeline and pack '
                'them (PackInputs and the like).'
            )


def check_objects(data_samples: Sequence[Any], num_classes: int) -> None:
    """Verify that the labels of objects are those of classes; on an accelerator they are not read back.

    Args:
        data_samples (Sequence): Samples of mmdet.
        num_classes (int): Number of classes, without background.

    Raises:
        ValueError: If a label lies outside of them.
    """
    check_annotated(data_samples, 'gt_instances')
    for i, sample in enumerate(data_samples):
        labels = sample.gt_instances.labels
        wrong = labels[(labels < 0) | (labels >= num_classes)] if labels.device.type == 'cpu' else labels[:0]
        if len(wrong):
            raise ValueError(
                f'Sample {i} ({sample.get("img_path", "image in memory")}) has objects with the labels '
                f'{sorted(wrong.unique().tolist())[:5]}, but the student knows the classes 0 to {num_classes - 1}: correct the '
                'annotations, num_classes of its head, or the classes of the data set (metainfo).'
            )


def read_assignment(
    calls: Sequence[tuple[tuple[Any, ...], dict[str, Any]]], batch: int, lengths: Sequence[int], num_classes: int, site: str
) -> tuple[Tensor, Tensor]:
    """Return what a head's own classification loss was told.

    Args:
        calls (Sequence): Arguments of its calls: (prediction, target, weight), of each level or of all levels at once,
            flattened in the order (B, H, W, anchors). A target is a label of each prediction (for background K, or K - 1 where
            it has an output of its own), a pair of it and a quality score, or a distribution over classes.
        batch (int): Number of images B.
        lengths (Sequence[int]): Number of predictions at each level for an image.
        num_classes (int): Number of classes K.
        site (str): Name of the site, for the error.

    Returns:
        tuple[Tensor, Tensor]: Distribution (B, K, M) and weight (B, 1, M).

    Raises:
        ValueError: If the calls do not cover all predictions.
    """
    per_level = len(calls) == len(lengths)
    expected = [batch * length for length in lengths] if per_level else [batch * sum(lengths)]
    got = [args[0].shape[0] for args, _ in calls]
    if got != expected:
        raise ValueError(
            f'The classification loss of the student is expected to be called for all predictions, {expected}, but its calls '
            f'got {got} of them: the head selects or weighs them in a way of its own, which {site} does not know.'
        )
    labels: list[Tensor] = []
    scores: list[Tensor] = []
    weights: list[Tensor] = []
    for args, kwargs in calls:
        prediction = args[0]
        target = args[1] if len(args) > 1 else kwargs['target']
        weight = args[2] if len(args) > 2 else kwargs.get('weight')
        label, score = target if isinstance(target, (tuple, list)) else (target, None)
        weight = prediction.new_ones(len(prediction)) if weight is None else weight.reshape(len(prediction), -1).amax(dim=1)
        for found, value in ((labels, label), (scores, score), (weights, weight.float())):
            if value is not None:
                found += (value,) if per_level else value.split([batch * length for length in lengths])

    def joined(levels: Sequence[Tensor]) -> Tensor:
        return torch.cat([level.detach().reshape(batch, -1, *level.shape[1:]) for level in levels], dim=1)

    label = joined(labels)
    if label.ndim == 2:
        classes = torch.arange(num_classes, device=label.device)
        probability = (label[:, None] == classes[:, None]).float()
    else:
        probability = label.float()[:, :, :num_classes].transpose(1, 2).contiguous()
    if scores:
        probability = probability * joined(scores)[:, None].float()
    return probability, joined(weights)[:, None]


def location_classes(target: Target, length: int) -> Tensor:
    """Return the class of each location, for a stratified choice.

    Args:
        target (Target): Annotations (B, K, M); M is a multiple of the number of locations if there are several anchors.
        length (int): Number N of locations.

    Returns:
        Tensor: (B, N), long: the class, K for background, -1 for what is ignored.
    """
    batch, classes = target.probability.shape[:2]
    # The anchors of one location follow each other; a location has the class of its most certain one.
    num_priors = math.prod(target.probability.shape[2:]) // length  # not -1: a batch may hold no proposal at all
    probability = target.probability.reshape(batch, classes, length, num_priors)
    weight = target.probability.new_ones(batch, 1, length, num_priors)
    if target.weight is not None:
        weight = target.weight.reshape(weight.shape)
    best, index = (probability * (weight > 0)).amax(dim=3).max(dim=1)
    index = torch.where(best > 0, index, classes)
    return torch.where(weight.amax(dim=(1, 3)) > 0, index, -1)


def sample_stratified(classes: Tensor, num_classes: int, num_samples: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Choose locations of each image at random, every class that occurs with the same chance.

    Rare classes, such as small objects, would hardly be met otherwise. No size depends on the data, so nothing waits for the
    device.

    Args:
        classes (Tensor): Class of each location, (B, N), long, below ``num_classes``; -1 is never chosen unless nothing else is
            left.
        num_classes (int): Number of classes, background included.
        num_samples (int): How many locations to choose in an image, at most N.
        generator (torch.Generator): Where the randomness comes from.

    Returns:
        tuple[Tensor, Tensor]: Indices of the locations (B, num_samples), and their weights, 0 for what is ignored.
    """
    rows, counts = classes.clamp(min=0), (classes >= 0).float()
    sizes = torch.zeros(len(classes), num_classes, device=classes.device).scatter_add_(1, rows, counts)
    chance = counts / sizes.gather(1, rows).clamp(min=1)
    # Weighted sampling without replacement: the largest of u**(1/w), in logarithms (Efraimidis & Spirakis 2006).
    u = torch.rand(classes.shape, generator=generator, device=classes.device).clamp(min=1e-12)
    index = (u.log() / chance.clamp(min=1e-30)).topk(num_samples, dim=1).indices
    return index, counts.gather(1, index)
