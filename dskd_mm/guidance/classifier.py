r"""The teacher's last linear layer: :math:`\log p(y|x)` and its gradient in closed form.

Every recogniser ends in a linear classifier over features. For such a layer the guidance term of classifier guidance
(Dhariwal & Nichol 2021), :math:`\nabla_x \log p(y|x)`, needs no autograd: with the target distribution q and the
prediction p it is :math:`W^\top (q - p)`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeGuard, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.grad import conv2d_input

Layer = TypeVar('Layer', bound=nn.Module)

CHUNK = 2**20
"""Logits that are compared at a time."""


@dataclass
class Target:
    """What the classifier should say, at the resolution of its logits.

    Attributes:
        probability (Tensor): The target distribution q over classes, of the shape of the logits: (B, K) for images,
            (B, K, M) for M predictions an image. One-hot, soft (mixup, a teacher's posterior) or multi-hot (sigmoid
            classifiers).
        weight (Tensor, optional): Weight of each sample or prediction, (B, 1) or (B, 1, M); 0 ignores it. Defaults to None,
            which means 1 everywhere.
        count (Tensor, optional): What losses are divided by, a scalar: the number of foreground predictions in dense
            detection. Defaults to None: the sum of the weights.
        focus (float): Exponent of the factor ``|q - p|**focus`` by which losses of sigmoid classifiers are multiplied, so that
            the many easy background predictions of dense detection weigh little (quality focal loss, Li et al. 2020, eq. 5).
            Defaults to 0.
        background (bool): Whether the last class is that of the background. Defaults to False.
    """

    probability: Tensor
    weight: Tensor | None = None
    count: Tensor | None = None
    focus: float = 0.0
    background: bool = False

    @property
    def foreground(self) -> Tensor:
        """The distribution over the classes of objects, (B, K, ...) without the background."""
        return self.probability[:, :-1] if self.background else self.probability

    def normalizer(self) -> Tensor:
        """What losses are divided by, at least 1; a scalar tensor on the target's device."""
        if self.count is not None:
            return self.count.clamp(min=1)
        if self.weight is None:
            count = self.probability.numel() // self.probability.shape[1]
            # Not new_tensor, which would copy from the host and wait for the device.
            return self.probability.new_full((), float(max(count, 1)))
        return self.weight.sum().clamp(min=1)

    def apply_weight(self, value: Tensor) -> Tensor:
        """Weight a tensor of shape (B, 1 or K, ...)."""
        return value if self.weight is None else value * self.weight

    def select(self, classes: Tensor) -> 'Target':
        """The same for some classes alone.

        Args:
            classes (Tensor): Their indices, (k, ), long.
        """
        return replace(self, probability=self.probability.index_select(1, classes))

    def expand_as(self, logits: Tensor) -> 'Target':
        """The same at the resolution of logits (B, K, M), at each location of an image what is annotated for it as a whole."""
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


class TeacherClassifier(nn.Module):
    """A frozen linear classifier with the closed-form gradient of its log-likelihood.

    Two kinds, told apart by the weight's rank:

    - ``(K, C)``, a linear layer on vectors. Maps (B, C, H, W) are averaged over their locations first, as global average
      pooling does.
    - ``(K, C, k, k)``, a convolution, dense over the map, with its stride, padding and dilation.

    Its tensors are buffers outside the state dict: the teacher belongs to no checkpoint.

    Args:
        weight (Tensor): Weight of the layer, (K, C) or (K, C, k, k).
        bias (Tensor, optional): Bias of shape (K, ). Defaults to None.
        sigmoid (bool): Whether classes are independent (multi-label, focal and BCE heads) instead of exclusive. Defaults to
            False.
        stride (int | tuple): Stride of a convolution. Defaults to 1.
        padding (int | tuple): Padding of a convolution. Defaults to 0.
        dilation (int | tuple): Dilation of a convolution. Defaults to 1.
        anchors (int): Predictions A at each location of a convolution, whose channels are then ordered (A, K) as in the
            dense heads of mmdet. Defaults to 1.

    Raises:
        ValueError: If the weight is neither a matrix nor a 2-d convolution kernel, or its rows do not divide into anchors.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None = None,
        sigmoid: bool = False,
        stride: int | tuple[int, ...] = 1,
        padding: int | tuple[int, ...] = 0,
        dilation: int | tuple[int, ...] = 1,
        anchors: int = 1,
    ) -> None:
        super().__init__()
        if weight.ndim not in (2, 4):
            raise ValueError(
                'TeacherClassifier expects the weight of a linear layer (K, C) or of a 2-d convolution (K, C, k, k), '
                f'but got one of shape {tuple(weight.shape)}.'
            )
        if weight.shape[0] % anchors or (anchors > 1 and weight.ndim == 2):
            raise ValueError(
                f'TeacherClassifier expects a convolution with a multiple of its {anchors} anchors as output channels, but got '
                f'a weight of shape {tuple(weight.shape)}.'
            )
        # Copies: whatever becomes of the layer, the classifier stays.
        self.register_buffer('weight', weight.detach().to(torch.float32, copy=True), persistent=False)
        bias = None if bias is None else bias.detach().to(torch.float32, copy=True)
        self.register_buffer('bias', bias, persistent=False)
        self.sigmoid = sigmoid
        self.anchors = anchors
        self._per_location: TeacherClassifier | None = None
        self.conv_args: dict[str, Any] = dict(stride=stride, padding=padding, dilation=dilation)

    @classmethod
    def from_layer(cls, layer: nn.Module, sigmoid: bool = False, anchors: int = 1) -> 'TeacherClassifier':
        """Freeze a copy of a host's classification layer.

        Args:
            layer (nn.Module): ``nn.Linear`` or an ungrouped ``nn.Conv2d``.
            sigmoid (bool): Whether classes are independent. Defaults to False.
            anchors (int): Predictions at each location. Defaults to 1.

        Returns:
            TeacherClassifier: The frozen classifier.

        Raises:
            TypeError: If the layer is of another kind.
        """
        if computes_as(layer, nn.Linear):
            return cls(layer.weight, layer.bias, sigmoid, anchors=anchors)
        if computes_as(layer, nn.Conv2d):
            is_plain = layer.groups == 1 and layer.padding_mode == 'zeros'
            if is_plain and not isinstance(layer.padding, str):
                return cls(layer.weight, layer.bias, sigmoid, layer.stride, layer.padding, layer.dilation, anchors)
        raise TypeError(
            'The closed-form guidance needs a linear classifier (nn.Linear, or nn.Conv2d with groups=1 and numeric padding '
            f'by zeros) without a forward of its own, but got {layer} ({type(layer).__module__}). Choose a teacher with one, '
            "or guide a detector through its whole head with site=dict(type='dskd_mm.NeckSite')."
        )

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return self.weight.shape[0] // self.anchors

    @property
    def in_channels(self) -> int:
        """Number of feature channels C."""
        return self.weight.shape[1]

    @property
    def is_dense(self) -> bool:
        """Whether there is one prediction per location instead of one per image."""
        return self.weight.ndim == 4

    def per_location(self) -> 'TeacherClassifier':
        """The same classifier at every location of a map instead of on its average: a 1x1 convolution."""
        if self.is_dense:
            return self
        if self._per_location is None:
            self._per_location = TeacherClassifier(self.weight[:, :, None, None], self.bias, self.sigmoid)
        return self._per_location

    def select(self, classes: Tensor) -> 'TeacherClassifier':
        """The same classifier for some of its classes alone.

        Args:
            classes (Tensor): Their indices, (k, ), long.
        """
        weight, bias = (
            None if rows is None else rows.unflatten(0, (self.anchors, -1)).index_select(1, classes).flatten(0, 1)
            for rows in (self.weight, self.bias)
        )
        assert weight is not None
        return TeacherClassifier(weight, bias, self.sigmoid, anchors=self.anchors, **self.conv_args)

    def scaled(self, factor: Tensor) -> 'TeacherClassifier':
        """The same classifier for features that were divided by a factor, a scalar: its weight takes the factor in."""
        return TeacherClassifier(self.weight * factor, self.bias, self.sigmoid, anchors=self.anchors, **self.conv_args)

    def logit_gain(self, decoder: nn.Conv2d | None = None) -> Tensor:
        r"""Mean squared norm of a class's weights, :math:`\frac1K\sum_k\|W_k\|^2`: logits moved per unit of gradient.

        Args:
            decoder (nn.Conv2d, optional): A 1x1 convolution before the classifier: the weights are those of both together.
                Defaults to None.
        """
        weight = self.weight
        if decoder is not None:
            weight = torch.einsum('kc...,cd->kd...', weight, decoder.weight.detach().flatten(1).to(weight.dtype))
        return weight.flatten(1).square().sum(dim=1).mean()

    def forward(self, feature: Tensor) -> Tensor:
        """Class logits in the feature's own precision when it is float64, else in float32.

        Args:
            feature (Tensor): Features of shape (B, C, H, W), or vectors (B, C) for a linear layer.

        Returns:
            Tensor: Logits (B, K), or (B, K, H', W') for a convolution, (B, K, H', W', A) with several anchors.
        """
        with torch.autocast(device_type=feature.device.type, enabled=False):
            feature = feature if feature.dtype == torch.float64 else feature.float()
            weight, bias = self._parameters_like(feature)
            if self.is_dense:
                return fold_anchors(F.conv2d(feature, weight, bias, **self.conv_args), self.anchors)
            if feature.ndim == 4:
                feature = feature.mean(dim=(2, 3))
            return F.linear(feature, weight, bias)

    def predict(self, logits: Tensor) -> Tensor:
        """Class probabilities of logits (B, K, ...)."""
        return logits.sigmoid() if self.sigmoid else logits.softmax(dim=1)

    def log_prob(self, feature: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        r""":math:`\sum_k q_k \log p_k` (plus :math:`(1-q_k)\log(1-p_k)` for sigmoid classifiers), summed over locations.

        Args:
            feature (Tensor): Features of shape (B, C, H, W) or (B, C).
            target (Tensor): Target distribution q of the shape of the logits.
            weight (Tensor, optional): Weight of each sample or location, broadcastable to the logits with one channel.

        Returns:
            Tensor: Log-likelihood of shape (B, ).
        """
        logits = self(feature)
        if self.sigmoid:
            likelihood = target * F.logsigmoid(logits) + (1 - target) * F.logsigmoid(-logits)
        else:
            likelihood = target * logits.log_softmax(dim=1)
        if weight is not None:
            likelihood = likelihood * weight
        return likelihood.flatten(1).sum(dim=1)

    def gradient(
        self, feature: Tensor, target: Tensor, weight: Tensor | None = None, strength: Tensor | float | None = None
    ) -> Tensor:
        """Gradient of :meth:`log_prob` by the feature, without autograd.

        For a linear layer behind average pooling it is constant over the H*W locations and holds the factor 1/(H*W) of the
        pooling; for a convolution it is the transposed convolution of ``q - p``.

        Args:
            feature (Tensor): Features of shape (B, C, H, W) or (B, C).
            target (Tensor): Target distribution q of the shape of the logits, or with their locations in one dimension
                (B, K, M); need not sum to 1 for sigmoid classifiers.
            weight (Tensor, optional): Weight of each sample or location, of that shape with one channel.
            strength (Tensor | float, optional): What the gradient is multiplied with, a scalar. Defaults to None: 1.

        Returns:
            Tensor: Gradient of the shape of ``feature``; behind pooling a view, whose locations share their memory.
        """
        logits = self(feature)
        target = target.reshape(logits.shape)
        if self.sigmoid:
            residual = target - logits.sigmoid()
        else:
            # A soft target that sums to m instead of 1 has the gradient q - m p.
            residual = target - target.sum(dim=1, keepdim=True) * logits.softmax(dim=1)
        if weight is not None:
            residual = residual * weight.reshape(weight.shape[0], 1, *logits.shape[2:])
        kernel, _ = self._parameters_like(residual)
        if strength is not None:
            kernel = kernel * strength  # the smallest of the tensors that could take it in
        with torch.autocast(device_type=feature.device.type, enabled=False):
            if self.is_dense:
                return conv2d_input(feature.shape, kernel, unfold_anchors(residual, self.anchors), **self.conv_args)
            gradient = residual @ kernel
        if feature.ndim == 4:
            height, width = feature.shape[2:]
            gradient = (gradient / (height * width))[:, :, None, None].expand_as(feature)
        return gradient

    def _parameters_like(self, like: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.weight.to(like.dtype), None if self.bias is None else self.bias.to(like.dtype)


def fold_anchors(logits: Tensor, anchors: int) -> Tensor:
    """Part the channels of a dense head, (B, A*K, H, W), into classes and anchors: (B, K, H, W, A); as is for one anchor.

    The order of the locations is that of mmdet's losses, which flatten (B, H, W, A*K).
    """
    return logits if anchors == 1 else logits.unflatten(1, (anchors, -1)).permute(0, 2, 3, 4, 1)


def unfold_anchors(logits: Tensor, anchors: int) -> Tensor:
    """The inverse of :func:`fold_anchors`."""
    return logits if anchors == 1 else logits.permute(0, 4, 1, 2, 3).flatten(1, 2)


class ClassifierGuidance:
    r"""The guidance term of a sampler: :math:`G(x)` at a feature in the denoiser's own scale.

    Args:
        classifier (TeacherClassifier): The frozen classifier.
        target (Target): What it should say.
        unit (str): What a strength of 1 means. 'gradient': the plain :math:`\nabla_x \log p(y|x)`, in which the strength has
            to absorb the H*W of pooling, the width and the size of the weights. 'logit': the gradient by the logit, i.e.
            without the pooling's 1/(H*W) and divided by the mean squared norm of a class's weights, so that a shift by G moves
            logits by about q - p whatever the teacher and resolution. Defaults to 'logit'.
        scale (Tensor, optional): The classifier sees ``scale * x`` (a scalar). Defaults to None: 1.
        decoder (nn.Conv2d, optional): A 1x1 convolution through which the classifier sees x: ``decoder(scale * x)``. Defaults
            to None.
        classes (Tensor, optional): Indices of the classes that are regarded, (k, ), long: the likelihood is that of the target
            among these. A strength of 1 means what it means for all of them. Defaults to None: all.

    Raises:
        ValueError: If ``unit`` is unknown.
    """

    def __init__(
        self,
        classifier: TeacherClassifier,
        target: Target,
        unit: str = 'logit',
        scale: Tensor | None = None,
        decoder: nn.Conv2d | None = None,
        classes: Tensor | None = None,
    ) -> None:
        if unit not in ('logit', 'gradient'):
            raise ValueError(f"The unit of guidance must be 'logit' or 'gradient', but got {unit!r}.")
        self.whole = classifier
        if classes is not None:
            classifier, target = classifier.select(classes), target.select(classes)
        # A scale that the classifier takes in costs nothing at the features.
        self.classifier = classifier if scale is None or decoder is not None else classifier.scaled(scale)
        self.target = target
        self.unit = unit
        self.scale = scale
        self.decoder = decoder

    def __call__(self, x: Tensor) -> Tensor:
        """Gradient at features x of shape (B, C, H, W), of the same shape."""
        with torch.autocast(device_type=x.device.type, enabled=False):
            return self._gradient(x)

    @cached_property
    def _gain(self) -> Tensor:
        # The same in all sampling steps.
        gain = self.whole.logit_gain(self.decoder)
        return gain if self.scale is None else gain * self.scale**2

    def _strength(self, x: Tensor) -> Tensor | None:
        strength = None if self.scale is None or self.decoder is None else self.scale
        if self.unit == 'gradient':
            return strength
        locations = 1 if self.classifier.is_dense else x.shape[2] * x.shape[3]
        return (1.0 if strength is None else strength) / (self._gain / locations).clamp(min=1e-12)

    def _gradient(self, x: Tensor) -> Tensor:
        feature, strength = x, self._strength(x)
        if self.decoder is not None:
            feature = self.decoder(x if self.scale is None else x * self.scale)
        gradient = self.classifier.gradient(feature, self.target.probability, self.target.weight, strength)
        return gradient if self.decoder is None else F.conv_transpose2d(gradient, self.decoder.weight.detach())


def target_cross_entropy(logits: Tensor, target: Target, sigmoid: bool = False, temperature: float = 1.0) -> Tensor:
    r"""KL divergence of the target q from the prediction of ``logits``, in float32; see :attr:`Target.focus`, too.

    Unless the target itself is in a graph, the gradient is computed together with the value, piece by piece: that of dense
    predictions would else keep some ten tensors of their size for the backward pass.

    Args:
        logits (Tensor): (B, K, ...).
        target (Target): Distribution q (softened by the temperature already) and weights.
        sigmoid (bool): Whether classes are independent: the divergence is summed over them. Defaults to False.
        temperature (float): Softens the prediction; the result is multiplied by its square. Defaults to 1.

    Returns:
        Tensor: A scalar, averaged over the samples (locations) that count; 0, and still in the graph, if none counts.
    """
    if target.probability.requires_grad or not logits.requires_grad or not torch.is_grad_enabled():
        total = total_divergence(logits, target, sigmoid, temperature)
    else:
        total = DivergenceWithGradient.apply(logits, target, sigmoid, temperature)
    return total / target.normalizer() * temperature**2


def total_divergence(logits: Tensor, target: Target, sigmoid: bool, temperature: float) -> Tensor:
    """The weighted sum of what :func:`target_cross_entropy` averages, a scalar."""
    logits = logits.float() / temperature
    q = target.probability.float()
    if sigmoid:
        divergence = -(q * F.logsigmoid(logits) + (1 - q) * F.logsigmoid(-logits))
        if target.focus:
            # No entropy is taken away: the factor makes the minimum 0.
            distance = (q - logits.sigmoid()).abs()
            if target.focus < 1:
                # A root has no gradient at 0, which saturated predictions reach.
                distance = distance.clamp(min=torch.finfo(distance.dtype).tiny)
            divergence = divergence * distance**target.focus
        else:
            divergence = divergence + torch.xlogy(q, q) + torch.xlogy(1 - q, 1 - q)
    else:
        divergence = torch.xlogy(q, q) - q * logits.log_softmax(dim=1)
    return target.apply_weight(divergence).sum()


class DivergenceWithGradient(torch.autograd.Function):
    """:func:`total_divergence` that keeps its gradient by the logits and nothing else."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, target: Target, sigmoid: bool, temperature: float) -> Tensor:
        """The sum over pieces of :data:`CHUNK` numbers, and its gradient."""
        # In single precision, whatever the logits are: a loss scaled against underflow scales what is kept here.
        ctx.dtype, logits = logits.dtype, logits.float()
        gradient, total = torch.empty_like(logits), logits.new_zeros(())
        # Predictions of an image, (B, K), are cut between images, dense ones between predictions.
        dim = 2 if logits.ndim > 2 else 0
        rows = max(CHUNK * logits.shape[dim] // max(logits.numel(), 1), 1)
        q = target.probability.expand_as(logits)
        weight = None if target.weight is None else target.weight.expand(len(logits), 1, *logits.shape[2:])
        for start in range(0, logits.shape[dim], rows):
            size = min(rows, logits.shape[dim] - start)
            own, wanted, slot = (whole.narrow(dim, start, size) for whole in (logits, q, gradient))
            counts = None if weight is None else weight.narrow(dim, start, size)
            with torch.enable_grad():
                own = own.detach().requires_grad_()
                value = total_divergence(own, replace(target, probability=wanted, weight=counts), sigmoid, temperature)
            slot.copy_(torch.autograd.grad(value, own)[0])
            total += value.detach()
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> Any:
        """The gradient by the logits; nothing else has one."""
        (gradient,) = ctx.saved_tensors
        return (grads[0] * gradient).to(ctx.dtype), None, None, None


def computes_as(layer: nn.Module, kind: type[Layer]) -> TypeGuard[Layer]:
    """Whether a layer computes what its PyTorch base does.

    A subclass with a forward of its own (normalised, margin) has a weight, but is no linear classifier. mmcv's wrappers, whose
    forward only differs for empty inputs, are.
    """
    own_forward = type(layer).forward is not kind.forward
    return isinstance(layer, kind) and (not own_forward or type(layer).__module__ == 'mmcv.cnn.bricks.wrappers')
