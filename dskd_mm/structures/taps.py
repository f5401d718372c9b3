"""Where a model is tapped, and what is known of it before any forward pass."""

from dataclasses import dataclass, field

from dskd_mm.features.widths import Channels


@dataclass
class Layer:
    """A further module that losses may read, beside the site's own feature.

    Attributes:
        path (str): Dotted path of the module.
        channels (int | tuple[int, ...]): Channels of its maps, or of each level's.
        io (str): 'input' or 'output'. Defaults to 'output'.
        index (int | str, optional): Which element, if they come in a tuple; None for the last, 'all' for each as a level.
            Defaults to None.
    """

    path: str
    channels: Channels
    io: str = 'output'
    index: int | str | None = None


@dataclass(frozen=True)
class BoxEncoding:
    """How a head encodes the boxes that it returns after the classes. Equal ones can be compared number by number.

    Attributes:
        kind (str): 'delta', 'class_delta', 'distance' or 'distribution', see :class:`~dskd_mm.losses.BoxLoss`.
        stds (tuple[float, ...]): What offsets are divided by. Defaults to (): nothing.
        bins (int): Into how many bins a distance is cut, where its distribution is predicted. Defaults to 0.
    """

    kind: str
    stds: tuple[float, ...] = ()
    bins: int = 0


@dataclass(frozen=True)
class MapInfo:
    """The maps of one tap, as far as they are known before a forward pass.

    Attributes:
        channels (int | tuple[int, ...]): Number of channels, or that of each level.
        is_map (bool): Whether they have height and width; supposed of a layer.
    """

    channels: Channels
    is_map: bool = True


@dataclass
class TapSpec:
    """Where one model is tapped.

    Attributes:
        part (str): The part of the model that holds the classifier and has a config of its own, such as ``head``.
        classifiers (tuple[str, ...]): Dotted paths of the classification layers: one, shared by all levels of a pyramid, or one
            for each level. Empty where there is no linear classifier.
        sigmoid (bool): Whether its classes are independent.
        num_classes (int): Number of classes K, background included where the classifier has an output for it; 0 without a
            classifier.
        features (tuple[str, ...]): Dotted paths of the modules whose input or output is the feature: one, or one per level.
        io (str): 'input' or 'output'.
        channels (int | tuple[int, ...]): Channels of the feature, or of each level's where they differ.
        index (int | str, optional): Which element, if the feature comes in a tuple; None for the last, 'all' for each as a
            level. Defaults to None.
        is_map (bool): Whether the feature has height and width. Defaults to True.
        is_pooled (bool): Whether the classifier's own input is the average of the feature over its locations. Defaults to
            False.
        is_dense (bool): Whether there is a prediction at every location of the feature. Defaults to False.
        num_priors (int): Predictions at each location: mmdet's number of base priors. Defaults to 1.
        strides (tuple[tuple[int, int], ...]): Strides of the levels of a pyramid. Defaults to (), which means one map.
        num_levels (int, optional): Number of levels, where a neck tells it. Defaults to None.
        num_labels (int): Labels that annotations may have, 0 to this number less one. Defaults to 0: not known.
        ignore_index (int): The label of what is ignored. Defaults to 255.
        stage (int, optional): Stage of a cascade. Defaults to None: there is only one.
        calls (dict[str, str]): Modules whose arguments the site reads, by a name of its own. Defaults to none.
        boxes (BoxEncoding, optional): How :attr:`part` encodes the boxes that it returns beside classes. Defaults to None: it
            has none that could be compared.
        box_scales (tuple[float, ...]): What the boxes of each level are multiplied with to be in one unit. Defaults to ():
            nothing.
        box_index (int): Which of the outputs of :attr:`part` in training are the boxes that it predicts with. Defaults to 1.
        logits_of (str, optional): Path of the module whose output, or the sum of whose outputs, are the logits, where it makes
            more of a classifier's: averages two, adds objectness. Guidance takes the classifier alone. Defaults to None: the
            classifiers themselves.
        logits_index (int | str | tuple, optional): Which of the outputs of :attr:`logits_of`, see
            :class:`~dskd_mm.features.FeatureTap`. Defaults to 'all'.
        layers (dict[str, Layer]): Further modules that losses read, by a name of their own. Defaults to none.
        classes (tuple[int, ...]): Which of the classifier's classes are the student's, in its order; :attr:`num_classes` counts
            these. Defaults to (): all as they are.
    """

    part: str
    classifiers: tuple[str, ...]
    sigmoid: bool
    num_classes: int
    features: tuple[str, ...]
    io: str
    channels: Channels
    index: int | str | None = None
    is_map: bool = True
    is_pooled: bool = False
    is_dense: bool = False
    num_priors: int = 1
    strides: tuple[tuple[int, int], ...] = ()
    num_levels: int | None = None
    num_labels: int = 0
    ignore_index: int = 255
    stage: int | None = None
    calls: dict[str, str] = field(default_factory=dict)
    boxes: BoxEncoding | None = None
    box_scales: tuple[float, ...] = ()
    box_index: int = 1
    logits_of: str | None = None
    logits_index: int | str | tuple[int | str, ...] | None = 'all'
    layers: dict[str, Layer] = field(default_factory=dict)
    classes: tuple[int, ...] = ()

    @property
    def is_pyramid(self) -> bool:
        """Return whether the feature may have several levels."""
        return len(self.strides) > 1 or self.index == 'all'

    @property
    def level_count(self) -> int:
        """Return how many levels the feature has; 1 where a neck does not tell."""
        if isinstance(self.channels, tuple):
            return len(self.channels)
        return self.num_levels or 1 if self.index == 'all' else max(len(self.strides), 1)

    def describe(self, name: str, reader: str) -> MapInfo:
        """Return what is known of the maps that :meth:`ModelOutputs.maps` gives by a name.

        Args:
            name (str): 'feature', 'logits' or the name of one of :attr:`layers`.
            reader (str): Who reads it, for the error.

        Raises:
            ValueError: If there is nothing of that name.
        """
        known = {'feature': MapInfo(self.channels, self.is_map)}
        if self.classifiers:
            known['logits'] = MapInfo(self.num_classes, self.is_dense)
        known |= {key: MapInfo(layer.channels) for key, layer in self.layers.items()}
        if name not in known:
            raise ValueError(
                f'{reader} reads {name!r}, but there is only {", ".join(map(repr, known))}. Name further modules in the '
                'argument layers.'
            )
        return known[name]
