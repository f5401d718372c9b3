r"""The teacher's last linear layer: :math:`\log p(y|x)` and its gradient in closed form.

Every recogniser ends in a linear classifier over features. For such a layer the guidance term of classifier guidance
(Dhariwal & Nichol 2021), :math:`\nabla_x \log p(y|x)`, needs no autograd: with the target distribution q and the
prediction p it is :math:`W^\top (q - p)`.
"""

from typing import Any, TypeGuard, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.grad import conv2d_input

from dskd_mm.features.pyramid import fold_priors, unfold_priors
from dskd_mm.functional import probabilities

Layer = TypeVar('Layer', bound=nn.Module)
ALSO_PLAIN = ('mmcv.cnn.bricks.wrappers', 'timm.layers.linear')
"""Whose layers have a forward of their own that differs for empty inputs, or within TorchScript, alone."""


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
        num_priors (int): Predictions A at each location of a convolution, whose channels are then ordered (A, K) as in the
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
        num_priors: int = 1,
    ) -> None:
        super().__init__()
        if weight.ndim not in (2, 4):
            raise ValueError(
                'TeacherClassifier expects the weight of a linear layer (K, C) or of a 2-d convolution (K, C, k, k), '
                f'but got one of shape {tuple(weight.shape)}.'
            )
        if weight.shape[0] % num_priors or (num_priors > 1 and weight.ndim == 2):
            raise ValueError(
                f'TeacherClassifier expects a convolution with a multiple of its {num_priors} anchors as output channels, but '
                f'got a weight of shape {tuple(weight.shape)}.'
            )
        # Copies: whatever becomes of the layer, the classifier stays.
        self.register_buffer('weight', weight.detach().to(torch.float32, copy=True), persistent=False)
        bias = None if bias is None else bias.detach().to(torch.float32, copy=True)
        self.register_buffer('bias', bias, persistent=False)
        self.sigmoid = sigmoid
        self.num_priors = num_priors
        self._per_location: TeacherClassifier | None = None
        self.conv_args: dict[str, Any] = dict(stride=stride, padding=padding, dilation=dilation)

    @classmethod
    def from_layer(
        cls, layer: nn.Module, sigmoid: bool = False, num_priors: int = 1, is_dense: bool = True
    ) -> 'TeacherClassifier':
        """Freeze a copy of a host's classification layer.

        Args:
            layer (nn.Module): ``nn.Linear`` or an ungrouped ``nn.Conv2d``.
            sigmoid (bool): Whether classes are independent. Defaults to False.
            num_priors (int): Predictions at each location. Defaults to 1.
            is_dense (bool): Whether a convolution predicts at each location; otherwise one of 1x1 is a linear layer on the
                average of a map. Defaults to True.

        Returns:
            TeacherClassifier: The frozen classifier.

        Raises:
            TypeError: If the layer is of another kind.
        """
        if computes_as(layer, nn.Linear):
            return cls(layer.weight, layer.bias, sigmoid, num_priors=num_priors)
        if computes_as(layer, nn.Conv2d):
            if not is_dense and layer.weight[0, 0].numel() == layer.groups == 1:
                return cls(layer.weight.flatten(1), layer.bias, sigmoid)
            is_plain = layer.groups == 1 and layer.padding_mode == 'zeros'
            if is_plain and not isinstance(layer.padding, str):
                return cls(layer.weight, layer.bias, sigmoid, layer.stride, layer.padding, layer.dilation, num_priors)
        raise TypeError(
            'The closed-form guidance needs a linear classifier (nn.Linear, or nn.Conv2d with groups=1 and numeric padding '
            f'by zeros) without a forward of its own, but got {layer} ({type(layer).__module__}). Choose a teacher with one, '
            "or guide a detector through its whole head with site=dict(type='dskd_mm.NeckSite')."
        )

    @property
    def num_classes(self) -> int:
        """Number of classes K."""
        return self.weight.shape[0] // self.num_priors

    @property
    def is_dense(self) -> bool:
        """Return whether there is one prediction per location instead of one per image."""
        return self.weight.ndim == 4

    def per_location(self) -> 'TeacherClassifier':
        """Return the same classifier at every location of a map instead of on its average: a 1x1 convolution."""
        if self.is_dense:
            return self
        if self._per_location is None:
            self._per_location = TeacherClassifier(self.weight[:, :, None, None], self.bias, self.sigmoid)
        return self._per_location

    def select(self, classes: Tensor) -> 'TeacherClassifier':
        """Return the same classifier for some of its classes alone.

        Args:
            classes (Tensor): Their indices, (k, ), long.
        """
        weight, bias = (
            None if rows is None else rows.unflatten(0, (self.num_priors, -1)).index_select(1, classes).flatten(0, 1)
            for rows in (self.weight, self.bias)
        )
        assert weight is not None
        return TeacherClassifier(weight, bias, self.sigmoid, num_priors=self.num_priors, **self.conv_args)

    def scaled(self, factor: Tensor) -> 'TeacherClassifier':
        """Return the same classifier for features that were divided by a factor, a scalar: its weight takes the factor in."""
        return TeacherClassifier(self.weight * factor, self.bias, self.sigmoid, num_priors=self.num_priors, **self.conv_args)

    def softened(self, temperature: float) -> 'TeacherClassifier':
        """Return the same classifier with its logits divided by a temperature."""
        if temperature == 1:
            return self
        bias = None if self.bias is None else self.bias / temperature
        weight = self.weight / temperature
        return TeacherClassifier(weight, bias, self.sigmoid, num_priors=self.num_priors, **self.conv_args)

    def logit_gain(self, decoder: nn.Conv2d | None = None) -> Tensor:
        r"""Return the mean squared norm of classes' weights, :math:`\frac1K\sum_k\|W_k\|^2`: logits moved per unit of gradient.

        Args:
            decoder (nn.Conv2d, optional): A 1x1 convolution before the classifier: the weights are those of both together.
                Defaults to None.
        """
        weight = self.weight
        if decoder is not None:
            weight = torch.einsum('kc...,cd->kd...', weight, decoder.weight.detach().flatten(1).to(weight.dtype))
        return weight.flatten(1).square().sum(dim=1).mean()

    def forward(self, feature: Tensor) -> Tensor:
        """Return the class logits in the feature's own precision when it is float64, else in float32.

        Args:
            feature (Tensor): Features of shape (B, C, H, W), or vectors (B, C) for a linear layer.

        Returns:
            Tensor: Logits (B, K), or (B, K, H', W') for a convolution, (B, K, H', W', A) with several anchors.
        """
        with torch.autocast(device_type=feature.device.type, enabled=False):
            feature = feature if feature.dtype == torch.float64 else feature.float()
            weight, bias = self._parameters_like(feature)
            if self.is_dense:
                return fold_priors(F.conv2d(feature, weight, bias, **self.conv_args), self.num_priors)
            if feature.ndim == 4:
                feature = feature.mean(dim=(2, 3))
            return F.linear(feature, weight, bias)

    def predict(self, logits: Tensor) -> Tensor:
        """Return the class probabilities of logits (B, K, ...)."""
        return probabilities(logits, self.sigmoid)

    def log_prob(self, feature: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
        r"""Return :math:`\sum_k q_k \log p_k` (plus :math:`(1-q_k)\log(1-p_k)` for sigmoid classifiers), summed over locations.

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
        """Return the gradient of :meth:`log_prob` by the feature, without autograd.

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
                return conv2d_input(feature.shape, kernel, unfold_priors(residual, self.num_priors), **self.conv_args)
            gradient = residual @ kernel
        if feature.ndim == 4:
            height, width = feature.shape[2:]
            gradient = (gradient / (height * width))[:, :, None, None].expand_as(feature)
        return gradient

    def _parameters_like(self, like: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.weight.to(like.dtype), None if self.bias is None else self.bias.to(like.dtype)


def computes_as(layer: nn.Module, kind: type[Layer]) -> TypeGuard[Layer]:
    """Return whether a layer computes what its PyTorch base does.

    A subclass with a forward of its own (normalised, margin) has a weight, but is no linear classifier, but for those of
    :data:`ALSO_PLAIN`.
    """
    own_forward = type(layer).forward is not kind.forward
    return isinstance(layer, kind) and (not own_forward or type(layer).__module__ in ALSO_PLAIN)
