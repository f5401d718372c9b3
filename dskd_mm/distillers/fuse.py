"""The teacher's classifier folded into the student's: a better opinion in a head of the student's own shape."""

from typing import Any

import torch
from torch import Tensor, nn

from dskd_mm.distillers.dskd import DSKDDistiller
from dskd_mm.guidance import TeacherClassifier
from dskd_mm.guidance.classifier import computes_as

NO_BORDER = "with a border of zeros, to which φ's offset does not reach, so that no single layer has the mean of both"


@torch.no_grad()
def fuse_classifier(distiller: Any) -> None:
    r"""Make the student's classification layers say the mean of what they say and of what the teacher's say on z.

    In evaluation φ is linear, :math:`z = A f + c`, and both classifiers are layers of the same kind, so that their mean is one
    more: :math:`\frac12 (W_s + W_t A)\,f + \frac12 (b_s + b_t + W_t c)`. An average over locations changes nothing in that.
    Nothing else of the student changes. The distiller is put into evaluation mode; of the teacher its classifier is enough.

    Args:
        distiller (DSKDDistiller): A trained distiller, with its weights.

    Raises:
        TypeError: If the distiller is of another method, or the student's layer is no plain linear one or convolution.
        ValueError: If φ was not trained by the anchor or is not linear, or no layer of the student's shape has the mean.
    """
    if not isinstance(distiller, DSKDDistiller):
        kind = type(distiller).__name__
        raise TypeError(f'Fusing expects a DSKDDistiller, whose φ is trained by the classifier, but got a {kind}.')
    spec = distiller.student_spec
    if not distiller.options.loss_weights['anchor'] or not spec.classifiers or spec.logits_of:
        raise ValueError(
            'Fusing expects a φ that was trained by the anchor, and logits of a classification layer alone, but got '
            f'loss_weights={distiller.options.loss_weights} and the classifiers {spec.classifiers} of the {spec.part}.'
        )
    distiller.eval()
    if not distiller.teacher.is_loaded:
        device = next(distiller.student.parameters()).device
        distiller.teacher.load(distiller.teacher_spec, device, False, distiller.data_preprocessor)
    layers = [distiller.student.get_submodule(path) for path in spec.classifiers]
    theirs = distiller.teacher.classifiers * (len(layers) if len(distiller.teacher.classifiers) == 1 else 1)
    if len(theirs) != len(layers):
        raise ValueError(
            f'Fusing expects as many classifiers of both, but got {len(layers)} of the student, {len(theirs)} of the teacher.'
        )
    assert isinstance(spec.channels, int)  # where there are classifiers
    slope, offset = linear_part(distiller.align, spec.channels)
    for path, layer, classifier in zip(spec.classifiers, layers, theirs, strict=True):
        fuse_layer(path, layer, classifier, slope, offset)


def fuse_layer(path: str, layer: nn.Module, classifier: TeacherClassifier, slope: Tensor, offset: Tensor) -> None:
    """Fold a classifier of the teacher into a layer of the student, in place.

    Args:
        path (str): Where the layer is, for errors.
        layer (nn.Module): The student's, a linear layer or a convolution.
        classifier (TeacherClassifier): The teacher's.
        slope (Tensor): A, (C_t, C_s), float64.
        offset (Tensor): c, (C_t, ), float64.
    """
    if not computes_as(layer, nn.Linear) and not computes_as(layer, nn.Conv2d):
        raise TypeError(f'{path!r} of the student is expected to be a linear layer or a convolution, but it is {layer}.')
    folded = torch.einsum('kc...,cd->kd...', classifier.weight.double(), slope)
    if folded.shape != layer.weight.shape:
        raise ValueError(
            f"{path!r} of the student has a weight of {tuple(layer.weight.shape)}, the teacher's on it one of "
            f'{tuple(folded.shape)}: their mean has no shape.'
        )
    if isinstance(layer, nn.Conv2d):
        own = {name: getattr(layer, name) for name in ('stride', 'padding', 'dilation')}
        if own != classifier.conv_args:
            raise ValueError(f'{path!r} of the student has {own}, the teacher {classifier.conv_args}: they see other places.')
        if any(own['padding']) and bool(offset.any()):
            raise ValueError(f'{path!r} is a convolution {NO_BORDER}. Export without --fuse.')
    bias = classifier.weight.double().reshape(len(folded), len(offset), -1).sum(dim=2) @ offset
    bias = bias if classifier.bias is None else bias + classifier.bias.double()
    if layer.bias is None:
        raise ValueError(
            f'{path!r} of the student has no bias, but the mean of both classifiers has one. Export without --fuse.'
        )
    layer.weight.copy_((layer.weight.double() + folded) / 2)
    layer.bias.copy_((layer.bias.double() + bias) / 2)


def linear_part(align: nn.Module, channels: int) -> tuple[Tensor, Tensor]:
    """Return slope (C_t, C_s) and offset (C_t, ) of φ in evaluation, in float64.

    Raises:
        ValueError: If it is not linear, as with a ReLU or a norm over the channels of each image.
    """
    dtype = next(align.parameters(), torch.zeros(())).dtype
    align.double().eval()
    basis = torch.cat([torch.zeros(1, channels), torch.eye(channels), torch.randn(4, channels)]).double()[:, :, None, None]
    found = align(basis)[:, :, 0, 0]
    align.to(dtype)
    offset, slope = found[0], (found[1 : channels + 1] - found[0]).T
    expected = basis[channels + 1 :, :, 0, 0] @ slope.T + offset
    if not torch.allclose(found[channels + 1 :], expected, rtol=1e-6, atol=1e-8):
        raise ValueError(f'φ is not linear in evaluation, so no single layer has the mean of both classifiers: {align}.')
    return slope, offset
