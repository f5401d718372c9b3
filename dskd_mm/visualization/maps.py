"""Feature maps as pictures."""

from collections.abc import Sequence

import torch
from matplotlib.figure import Figure
from torch import Tensor

from dskd_mm.visualization.journey import FeatureJourney
from dskd_mm.visualization.style import new_figure

FITTED = 20000
"""Vectors that the principal directions are fitted to at most."""


def plot_maps(
    journeys: Sequence[FeatureJourney],
    pictures: Sequence[Tensor],
    names: Sequence[str],
    palette: Sequence[tuple[int, int, int]],
) -> Figure | None:
    """Plot the feature of each image at each stage: its directions as colours, and what the teacher's classifier sees in it.

    Args:
        journeys (Sequence[FeatureJourney]): Of an image each.
        pictures (Sequence[Tensor]): The images, (H, W, 3) of 0 to 255.
        names (Sequence[str]): Names of the classes.
        palette (Sequence[tuple]): Their colours, 0 to 255.

    Returns:
        Figure, optional: Two rows an image; None if features have no height and width.
    """
    levels = [best_level(journey) for journey in journeys]
    maps = [journey_maps(journey, level) for journey, level in zip(journeys, levels, strict=True)]
    if max(value.shape[2] * value.shape[3] for value in maps) == 1:
        return None
    colours = direction_colours(maps)
    seen = [class_maps(journey, level, palette) for journey, level in zip(journeys, levels, strict=True)]
    height = sum(1 if part is None else 2 for part in seen)
    stages = journeys[0].names
    ratio = sum(picture.shape[0] / picture.shape[1] for picture in pictures) / len(pictures)
    figure, grid = new_figure(1.4 * (len(stages) + 1), 1.4 * ratio * height + 0.6, height, len(stages) + 1, squeeze=False)
    figure.set_layout_engine('compressed')
    rows = iter(grid)
    for picture, colour, part, journey in zip(pictures, colours, seen, journeys, strict=True):
        row = next(rows)
        row[0].imshow(picture.numpy())
        row[1].set_ylabel('directions', fontsize=8)
        for axes, image in zip(row[1:], colour, strict=True):
            axes.imshow(image.numpy(), interpolation='nearest')
        if part is None:
            continue
        row = next(rows)
        row[0].axis('off')
        row[1].set_ylabel('classes' if journey.is_dense else f'sees {names[int(journey.labels()[0, 0])]}', fontsize=8)
        for axes, image in zip(row[1:], part, strict=True):
            axes.imshow(image.numpy(), vmin=0, vmax=1, cmap='viridis', interpolation='nearest')
    for axes, name in zip(grid[0], ['image', *stages], strict=True):
        axes.set_title(name.replace(': ', '\n'), fontsize=8)
    for axes in grid.flat:
        axes.set(xticks=[], yticks=[])
    return figure


def journey_maps(journey: FeatureJourney, level: int) -> Tensor:
    """Return one level of an image's features, (S, C, H, W)."""
    return torch.stack([journey.pyramid.unpack(stage)[level][0] for stage in journey.stages])


def best_level(journey: FeatureJourney) -> int:
    """Return the level on which most locations have an annotated class, the finest one if none has."""
    if not journey.is_dense:
        return 0
    counts = [int((part >= 0).sum()) for part in journey.labels().split(journey.pyramid.lengths, dim=1)]
    return counts.index(max(counts))


def direction_colours(maps: Sequence[Tensor]) -> list[Tensor]:
    """Return maps (S, C, H, W) as pictures (S, H, W, 3): their three principal directions are red, green and blue.

    The directions are those of all images and stages together. Each stage is seen from its own mean and in units of its own
    spread, for the student's features and the teacher's may lie at different offsets.
    """
    flat = [value.flatten(2).transpose(1, 2) for value in maps]
    joined = torch.cat(flat, dim=1)
    center, spread = joined.mean(dim=1, keepdim=True), joined.std(dim=(1, 2), keepdim=True).clamp(min=1e-6)
    scaled = [(value - center) / spread for value in flat]
    fitted = torch.cat(scaled, dim=1).flatten(0, 1)
    fitted = fitted[:: max(1, len(fitted) // FITTED)]
    directions = torch.linalg.svd(fitted, full_matrices=False).Vh[:3]
    directions = torch.cat([directions, directions.new_zeros(3 - len(directions), directions.shape[1])])
    projected = fitted @ directions.T
    low, high = projected.quantile(0.02, dim=0), projected.quantile(0.98, dim=0)
    found = [((value @ directions.T - low) / (high - low).clamp(min=1e-6)).clamp(0, 1) for value in scaled]
    return [value.unflatten(1, part.shape[2:]) for value, part in zip(found, maps, strict=True)]


def class_maps(journey: FeatureJourney, level: int, palette: Sequence[tuple[int, int, int]]) -> Tensor | None:
    """Return what the teacher's classifier sees at each location: class colours by their probability, (S, H, W, 3).

    Of a whole image it is the probability of its class at each location (a class activation map), (S, H, W). None where
    nothing is classified.
    """
    size = journey.pyramid.sizes[level]
    if journey.is_dense and journey.probabilities is not None:
        if journey.probabilities.shape[-1] != sum(journey.pyramid.lengths):
            return None  # the classifier's own stride is not 1
        level_values = journey.probabilities[:, 0].split(journey.pyramid.lengths, dim=2)[level]
        colours = torch.tensor(palette, dtype=torch.float32)[: level_values.shape[1]] / 255
        return torch.einsum('skn,kc->snc', level_values[:, : len(colours)], colours).clamp(0, 1).unflatten(1, size)
    label = int(journey.labels()[0, 0])
    if not journey.classifiers or journey.classifiers[0].is_dense or label < 0 or size == (1, 1):
        return None
    classifier = journey.classifiers[0].per_location()
    logits = [classifier(stage) for stage in journey_maps(journey, level)[:, None]]
    return torch.stack([classifier.predict(value)[0, label] for value in logits])
