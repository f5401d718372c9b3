"""What a classifier should say."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor


@dataclass
class Target:
    """What the classifier should say, at the resolution of its logits.

    Attributes:
        probability (Tensor): The target distribution q over classes, of the shape of the logits: (B, K) for images,
            (B, K, M) for M predictions an image. One-hot, soft (mixup, a teacher's posterior) or multi-hot (sigmoid
            classifiers).
        weight (Tensor, optional): Weight of each sample or prediction, (B, 1) or (B, 1, M); 0 ignores it. Defaults to None,
            which means 1 everywhere.
        avg_factor (Tensor, optional): What losses are divided by, a scalar: the number of foreground predictions in dense
            detection. Defaults to None: the sum of the weights.
        focus (float): Exponent of the factor ``|q - p|**focus`` by which losses of sigmoid classifiers are multiplied, so that
            the many easy background predictions of dense detection weigh little (quality focal loss, Li et al. 2020, eq. 5).
            Defaults to 0.
        background (bool): Whether the last class is that of the background. Defaults to False.
    """

    probability: Tensor
    weight: Tensor | None = None
    avg_factor: Tensor | None = None
    focus: float = 0.0
    background: bool = False

    @property
    def foreground(self) -> Tensor:
        """Return the distribution over the classes of objects, (B, K, ...) without the background."""
        return self.probability[:, :-1] if self.background else self.probability

    def normalizer(self) -> Tensor:
        """Return what losses are divided by, at least 1; a scalar tensor on the target's device."""
        if self.avg_factor is not None:
            return self.avg_factor.clamp(min=1)
        if self.weight is None:
            count = self.probability.numel() // self.probability.shape[1]
            # Not new_tensor, which would copy from the host and wait for the device.
            return self.probability.new_full((), float(max(count, 1)))
        return self.weight.sum().clamp(min=1)

    def cpu(self) -> 'Target':
        """Return the same target on the CPU."""
        weight, factor = (None if value is None else value.cpu() for value in (self.weight, self.avg_factor))
        return replace(self, probability=self.probability.cpu(), weight=weight, avg_factor=factor)

    def apply_weight(self, value: Tensor) -> Tensor:
        """Weight a tensor of shape (B, 1 or K, ...)."""
        return value if self.weight is None else value * self.weight

    def select(self, classes: Tensor) -> 'Target':
        """Return the same target for some classes alone.

        Args:
            classes (Tensor): Their indices, (k, ), long.
        """
        return replace(self, probability=self.probability.index_select(1, classes))

    def expand_as(self, logits: Tensor) -> 'Target':
        """Repeat the annotation of an image at each of its locations, at the resolution of logits (B, K, M)."""
        if self.probability.ndim == logits.ndim:
            return self
        weight = None if self.weight is None else self.weight[..., None].expand(-1, -1, logits.shape[2])
        return replace(self, probability=self.probability[..., None].expand_as(logits), weight=weight)

    def split(self, lengths: Sequence[int]) -> list['Target']:
        """Cut the M predictions of (B, K, M) into pieces, those of the levels of a pyramid; (B, K) is one piece."""
        if self.probability.ndim == 2:
            return [self]
        probabilities = self.probability.split(list(lengths), dim=2)
        weights = [None] * len(lengths) if self.weight is None else self.weight.split(list(lengths), dim=2)
        return [replace(self, probability=p, weight=w) for p, w in zip(probabilities, weights, strict=True)]

    def main_classes(self) -> Tensor:
        """Return which classes the annotations name above all: bool, of the shape of :attr:`probability`.

        That is the main class of mixed images, all of several labels, and none where there is none.
        """
        highest = self.probability.amax(dim=1, keepdim=True)
        return (self.probability > 0) & (self.probability == highest)
