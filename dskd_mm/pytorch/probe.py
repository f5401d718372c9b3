"""Where a network classifies: seen by passing images through it, whatever library it is from."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dskd_mm.features import find_module
from dskd_mm.features.channels import IMAGE_SIZES, images_for, told_sizes
from dskd_mm.guidance.classifier import computes_as

IMAGE_SIZE = 64
"""Height and width that are tried first, for they are cheap."""


@dataclass
class Anatomy:
    """Where a network is tapped.

    Attributes:
        classifier (str): Path of the linear layer that classifies.
        num_classes (int): Its outputs.
        in_channels (int): Its inputs.
        returns_logits (bool): Whether the network returns what this layer returns.
        feature (str, optional): Path of the module whose output is the feature. None takes the classifier's input, a vector.
        is_pooled (bool): Whether the average of the feature enters the classifier.
        channels (dict[str, int]): Channels of every module that gives out a map, by its path.
        stages (list[str]): A module for each resolution, the finest first; see :func:`stages_of`.
    """

    classifier: str
    num_classes: int
    in_channels: int
    returns_logits: bool = True
    feature: str | None = None
    is_pooled: bool = False
    channels: dict[str, int] = field(default_factory=dict)
    stages: list[str] = field(default_factory=list)


@dataclass
class Passage:
    """What modules gave out in one pass.

    Attributes:
        logits (Tensor): What the network returned, (B, K).
        linears (dict[str, tuple[Tensor, Tensor]]): Input and output of every linear layer.
        maps (dict[str, tuple[Tensor, Size]]): The average over locations, (B, C), and the shape of every map (B, C, H, W) of
            several locations, in the order in which modules end. Modules that run several times are left out.
    """

    logits: Tensor
    linears: dict[str, tuple[Tensor, Tensor]]
    maps: dict[str, tuple[Tensor, torch.Size]]


def examine(network: nn.Module, classifier: str | None, feature: str | None, image_size: int | None, owner: str) -> Anatomy:
    """Find where a network classifies, and on what.

    The classifier is the linear layer whose output the network returns. The feature is the output of the last module that
    makes a map whose average over its locations is the classifier's input. Both are compared number by number, on two random
    images: unlike on the meta device (:mod:`dskd_mm.sites.logits_layer`), an average that no module takes is seen, too. The
    network is left as it is.

    Args:
        network (nn.Module): The network.
        classifier (str, optional): Path of the classifier, if it is known.
        feature (str, optional): Path of the module whose output is to be the feature.
        image_size (int, optional): Height and width of the images. None tries :data:`IMAGE_SIZE`, then what the network tells.
        owner (str): 'student' or 'teacher', for errors.

    Raises:
        ValueError: If the classifier or the feature is not found.
    """
    linears = [name for name, layer in network.named_modules() if computes_as(layer, nn.Linear)]
    argument = 'teacher_classifier' if owner == 'teacher' else 'classifier'
    kind = type(network).__name__
    if not linears:
        raise ValueError(
            f'The {owner} ({kind}) has no nn.Linear, and DSKD guides by a last linear layer: give the network one, in place of '
            'a last convolution for instance.'
        )
    passage = pass_images(network, image_size)
    if isinstance(passage, Exception):
        if classifier is None or feature is not None:
            raise ValueError(
                f'Random images did not pass through the {owner} ({kind}), so its layers were not found: {passage} '
                'If it is made for images of another size, pass image_size=..., their height and width.'
            ) from passage
        passage = Passage(torch.empty(0), {}, {})
    if classifier is None:
        found = [name for name, (_, output) in passage.linears.items() if is_same(output, passage.logits)]
        if len(found) != 1:
            raise ValueError(
                f'No single nn.Linear of the {owner} ({kind}) makes the logits {tuple(passage.logits.shape)} that it returns: '
                f"pass {argument}='...', the one that classifies, of {', '.join(linears[-8:])}."
            )
        (classifier,) = found
    layer: Any = find_module(network, classifier, owner)
    if classifier not in linears:
        raise ValueError(
            f'{argument} expects the path of an nn.Linear, of {", ".join(linears[-8:])}, but {classifier!r} is {layer}.'
        )
    entered, left = passage.linears.get(classifier, (None, None))
    anatomy = Anatomy(classifier, layer.out_features, layer.in_features, left is None or is_same(left, passage.logits))
    anatomy.channels = {name: shape[1] for name, (_, shape) in passage.maps.items()}
    anatomy.stages = stages_of(passage)
    # A network with dead features would have every map's average.
    varies = entered is not None and float(entered.float().std()) > 0
    pooled = [name for name, (mean, _) in passage.maps.items() if varies and is_same(mean, entered)]
    if feature is None:
        anatomy.feature = pooled[-1] if pooled else None
    elif feature in anatomy.channels:
        anatomy.feature = feature
    else:
        raise ValueError(
            f'The {owner} ({kind}) has no module {feature!r} that gives out maps; these do: {list(anatomy.channels)}.'
        )
    anatomy.is_pooled = anatomy.feature in pooled
    return anatomy


def pass_images(network: nn.Module, image_size: int | None) -> Passage | Exception:
    """Return what is seen when two random images go through a network, or why they do not."""
    reason = Exception()
    for size in (IMAGE_SIZE, *told_sizes(network), *IMAGE_SIZES[:1])[:2] if image_size is None else (image_size,):
        try:
            return _pass(network, size)
        except Exception as error:  # of whatever kind: it is the network's code that runs
            reason = error
    return reason


@torch.no_grad()
def _pass(network: nn.Module, size: int) -> Passage:
    tensor = next(network.parameters())
    generator = torch.Generator().manual_seed(0)  # on the CPU, whatever torch's default device is
    images = torch.randn(images_for(network, size).shape, generator=generator, device='cpu')
    calls: Counter[str] = Counter()
    passage = Passage(tensor, {}, {})

    def note(name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        calls[name] += 1
        if not isinstance(output, Tensor):
            return
        if computes_as(module, nn.Linear) and output.ndim == 2:
            passage.linears[name] = inputs[0].clone(), output.clone()  # a later module may write into them
        elif output.ndim == 4 and output.shape[2] == output.shape[3] > 1:
            passage.maps[name] = output.mean(dim=(2, 3)), output.shape

    with evaluating(network):
        handles = [
            module.register_forward_hook(lambda module, inputs, output, name=name: note(name, module, inputs, output))
            for name, module in network.named_modules()
            if name
        ]
        try:
            passage.logits = logits_of(network(images.to(tensor.device, tensor.dtype)))
        finally:
            for handle in handles:
                handle.remove()
    for name in [name for name in passage.maps if calls[name] > 1]:
        del passage.maps[name]
    return passage


def logits_of(output: Any) -> Tensor:
    """Return the logits that a network returns: a tensor (B, K), or an object that has them as ``logits``.

    Raises:
        ValueError: If it returns anything else.
    """
    logits = getattr(output, 'logits', output)
    if not isinstance(logits, Tensor) or logits.ndim != 2 or isinstance(output, tuple):
        is_bare = isinstance(logits, Tensor) and not isinstance(output, tuple)
        got = tuple(logits.shape) if is_bare else type(output).__name__
        raise ValueError(
            f'A network is expected to return logits of shape (B, K), but got {got}: switch its auxiliary outputs off '
            '(aux_logits=False), or wrap it in a module that returns the logits alone.'
        )
    return logits


def stages_of(passage: Passage) -> list[str]:
    """Return a module for each resolution, the finest first: the last of those that lie least deep."""
    found: dict[torch.Size, str] = {}
    for name, (_, shape) in passage.maps.items():
        before = found.get(shape[2:])
        if before is None or name.count('.') <= before.count('.'):
            found[shape[2:]] = name
    return [found[size] for size in sorted(found, reverse=True)]


def is_same(one: Tensor, other: Any) -> bool:
    """Return whether two tensors hold the same numbers, but for rounding."""
    if one.shape != other.shape:
        return False
    one, other = one.float(), other.float()
    return torch.allclose(one, other, rtol=1e-3, atol=1e-4 * float(other.abs().max()))


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """Put a network into evaluation mode, and every module back into its own afterwards."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
