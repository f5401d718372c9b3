"""What models give in one forward pass, as their taps record it."""

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from types import TracebackType
from typing import Any

from torch import Tensor, nn

from dskd_mm.features.pyramid import Pyramid, fold_priors
from dskd_mm.features.tap import CallTap, FeatureTap, Tap
from dskd_mm.features.widths import Channels, each_level
from dskd_mm.features.window import Window
from dskd_mm.structures.taps import TapSpec


class TapRecord:
    """A model's taps at a site, open during one forward pass.

    Args:
        model (nn.Module): The model.
        spec (TapSpec): Where to tap it.
        owner (str): How to call the model in errors.
    """

    def __init__(self, model: nn.Module, spec: TapSpec, owner: str) -> None:
        self.spec = spec
        self.owner = owner
        self.feature_taps = [FeatureTap(model, path, spec.io, spec.index, owner) for path in spec.features]
        index = spec.logits_index if spec.logits_of else None
        paths = [spec.logits_of] if spec.logits_of else spec.classifiers
        self.logits_taps = [FeatureTap(model, path, 'output', index, owner) for path in paths]
        self.call_taps = {name: CallTap(model, path, owner) for name, path in spec.calls.items()}
        self.layer_taps = {
            name: FeatureTap(model, layer.path, layer.io, layer.index, owner) for name, layer in spec.layers.items()
        }
        # Heads return (classes, boxes, ...), each a list of levels.
        self.box_taps = [FeatureTap(model, spec.part, 'output', (spec.box_index, 'all'), owner)] if spec.boxes else []
        self._stack = ExitStack()

    def __enter__(self) -> 'TapRecord':
        taps: list[Tap] = [*self.feature_taps, *self.logits_taps, *self.box_taps]
        for tap in (*taps, *self.call_taps.values(), *self.layer_taps.values()):
            self._stack.enter_context(tap)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.close()

    @property
    def features(self) -> list[Tensor]:
        """The feature of each level, (B, C, H, W); vectors come with H = W = 1.

        Raises:
            ValueError: If a shape or the number of levels is not as expected.
        """
        return as_maps(self._values(self.feature_taps), self.spec.channels)

    @property
    def layers(self) -> dict[str, list[Tensor]]:
        """The maps (B, C, H, W) of each of :attr:`TapSpec.layers`: one, or one per level.

        Raises:
            ValueError: If a shape is not as expected.
        """
        found = {}
        for name, tap in self.layer_taps.items():
            layer = self.spec.layers[name]
            values = tap.values if layer.index == 'all' else [tap.value]
            found[name] = as_maps([(tap, value) for value in values], layer.channels)
        return found

    @property
    def logits(self) -> list[Tensor]:
        """The raw output of the classification layer at each level: (B, K), or (B, A*K, H, W)."""
        if self.spec.logits_of and not self.spec.is_dense:
            (tap,) = self.logits_taps
            levels = [sum(tap.values[1:], tap.values[0])]  # Conformer predicts with the sum of two
        else:
            levels = [value for _, value in self._values(self.logits_taps)]
        return [self._chosen(level, self.spec.num_priors, 1) for level in levels]

    @property
    def boxes(self) -> list[Tensor]:
        """The boxes at each level, (B, A*P, H, W), in the encoding of :attr:`TapSpec.boxes`; none where that is None."""
        values = [value for _, value in self._values(self.box_taps)]
        if self.spec.boxes and self.spec.boxes.kind == 'class_delta':
            values = [self._chosen(value, 1, 4) for value in values]
        if not self.spec.box_scales:
            return values
        return [value * scale for value, scale in zip(values, self.spec.box_scales, strict=True)]

    @property
    def captured(self) -> list[tuple[str, Tensor]]:
        """All tensors that the taps captured, each with the name of its tap and, if there are several, its number."""
        found: list[tuple[str, Tensor]] = []
        for tap in (*self.feature_taps, *self.layer_taps.values(), *self.logits_taps, *self.box_taps):
            values = tap.values
            names = [repr(tap)] if len(values) == 1 else [f'{tap!r}, number {i},' for i in range(len(values))]
            found += zip(names, values, strict=True)
        return found

    def calls(self, *names: str) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        """Return positional and named arguments of the calls of a module of :attr:`TapSpec.calls`.

        Of several modules those of the first that ran; none if none did.
        """
        taps = [self.call_taps[name] for name in names if name in self.call_taps]
        return next((tap.calls for tap in taps if tap.fired), [])

    def _chosen(self, level: Tensor, num_priors: int, numbers: int) -> Tensor:
        """Return predictions, (B, A * K * numbers, ...), of :attr:`TapSpec.classes` alone; the background has no box."""
        if not self.spec.classes:
            return level
        values = level.unflatten(1, (num_priors, -1, numbers))
        classes = [index for index in self.spec.classes if index < values.shape[2]]
        return values[:, :, classes].flatten(1, 3)

    def _values(self, taps: Sequence[FeatureTap]) -> list[tuple[FeatureTap, Tensor]]:
        if not self.spec.is_pyramid:
            return [(tap, tap.value) for tap in taps]
        found = [(tap, value) for tap in taps for value in tap.values]
        if taps and self.spec.strides and len(found) != len(self.spec.strides):
            raise ValueError(
                f'The {taps[0]!r} is expected to fire for each of the {len(self.spec.strides)} levels of the pyramid, but got '
                f'{len(found)} tensors. Name the layer that all levels share, or one for each level, in the site.'
            )
        return found


@dataclass
class ModelOutputs:
    """What a model showed at a site in one forward pass.

    Attributes:
        features (list[Tensor]): The feature of each level, (B, C, H, W).
        logit_levels (list[Tensor]): The raw output of the classification layer at each level, (B, K) or (B, A*K, H, W); none
            without a linear classifier. Defaults to none.
        box_levels (list[Tensor]): The boxes at each level, (B, A*P, H, W), if the head predicts any. Defaults to none.
        layers (dict[str, list[Tensor]]): The maps of each further layer, (B, C, H, W) a level. Defaults to none.
        num_priors (int): Predictions A at each location. Defaults to 1.
    """

    features: list[Tensor]
    logit_levels: list[Tensor] = field(default_factory=list)
    box_levels: list[Tensor] = field(default_factory=list)
    layers: dict[str, list[Tensor]] = field(default_factory=dict)
    num_priors: int = 1

    # Packed when they are asked for: who looks through a window needs no copy of all predictions.
    @cached_property
    def logits(self) -> Any:
        """Class logits in float32: (B, K), or the M predictions of all levels, (B, K, M). None without a linear classifier."""
        return self._pack(self.logit_levels)

    @cached_property
    def boxes(self) -> Any:
        """The boxes of all levels in float32, (B, P, M), or (B, P). None if the head predicts none."""
        return self._pack(self.box_levels)

    def maps(self, on: str) -> list[Tensor]:
        """Return the maps that a loss reads, (B, C, H, W) a level.

        Args:
            on (str): 'feature' for the site's, 'logits' where there are any, or the name of a layer: what a distiller calls
                readable. Logits are maps, too, the anchors of a location beside each other (H, W * A).
        """
        if on == 'logits':
            folded = [fold_priors(level.float(), self.num_priors) for level in self.logit_levels]
            return [level[:, :, None, None] if level.ndim == 2 else level.flatten(3) for level in folded]
        return self.features if on == 'feature' else self.layers[on]

    def within(self, window: Window) -> 'ModelOutputs':
        """Return the features and predictions in a window alone."""
        logits, boxes = (window.cut(maps) if maps else [] for maps in (self.logit_levels, self.box_levels))
        return ModelOutputs(window.cut(self.features), logits, boxes, num_priors=self.num_priors)

    def _pack(self, levels: Sequence[Tensor]) -> Tensor | None:
        """Return the predictions of all levels, with several anchors at a location one after the other."""
        return Pyramid.pack([fold_priors(level.float(), self.num_priors) for level in levels]) if levels else None


def as_maps(captured: Sequence[tuple[FeatureTap, Tensor]], channels: Channels) -> list[Tensor]:
    """Return what taps captured as maps (B, C, H, W), one a level; see :func:`as_map`."""
    widths = each_level(channels, len(captured))
    if len(widths) != len(captured):
        raise ValueError(
            f'The {captured[0][0]!r} is expected to give {len(widths)} levels of {channels} channels, but got {len(captured)}. '
            'Tap another module, or correct its channels.'
        )
    return [as_map(tap, value, width) for (tap, value), width in zip(captured, widths, strict=True)]


def as_map(tap: FeatureTap, value: Tensor, channels: int) -> Tensor:
    """Return what a tap captured as a map (B, C, H, W); vectors come with H = W = 1.

    Raises:
        ValueError: If its shape is not as expected.
    """
    level = value[:, :, None, None] if value.ndim == 2 else value
    if level.ndim != 4 or level.shape[1] != channels:
        raise ValueError(
            f'The {tap!r} is expected to be of shape (B, {channels}, H, W) or (B, {channels}), but got {tuple(value.shape)}. '
            'Tap another module, or correct its channels.'
        )
    return level
