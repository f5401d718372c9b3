"""Which layer of any network makes its logits: networks of timm, transformers or torchvision have no common name for it."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from dskd_mm.features.channels import on_first_size, on_meta_device
from dskd_mm.guidance.classifier import computes_as


@dataclass(frozen=True)
class LogitsLayer:
    """The layer whose output is what a network returns.

    Attributes:
        path (str): Its path.
        pooling (str, optional): Path of the module that averages a map, if nothing lies between that and the layer.
    """

    path: str
    pooling: str | None = None


def find_logits_layer(network: nn.Module, prefix: str, owner: str) -> LogitsLayer:
    """Find the linear layer, or 1x1 convolution of a pooled map, whose output a network returns as it is.

    One pass on the meta device tells, in the mode in which the network will run: nothing depends on names.

    Args:
        network (nn.Module): A network that returns logits (B, K), as the last of a tuple, or an object that holds them as
            ``logits``.
        prefix (str): Its own path in the model, with a dot, such as ``model.``.
        owner (str): 'student' or 'teacher'.

    Returns:
        LogitsLayer: The layer, with paths in the model.

    Raises:
        ValueError: If there is no such layer, or the pass fails; the message says which option names one.
    """
    argument = 'teacher_classifier' if owner == 'teacher' else 'classifier'
    shell = on_meta_device(network)
    shell.train(owner == 'student')
    calls: dict[str, tuple[Any, Any]] = {}
    for name, module in shell.named_modules():
        if name:
            module.register_forward_hook(lambda module, args, output, name=name: calls.update({name: (args, output)}))

    def run(images: Tensor) -> Any:
        calls.clear()
        with torch.no_grad():
            return shell(images)

    try:
        output = on_first_size(shell, run)
    except Exception as error:  # of whatever kind: it is the network's code that runs
        raise ValueError(
            f"The {owner}'s classification layer was not found by passing an image through its {type(network).__name__}: "
            f'{type(error).__name__}: {error} Name it with site=dict({argument}={prefix + "..."!r}).'
        ) from error
    output = output[-1] if isinstance(output, (tuple, list)) else output  # as ClsHead of mmpretrain reads a backbone
    logits = getattr(output, 'logits', output)
    if isinstance(logits, Tensor) and logits.ndim == 2:
        for path, (args, made) in calls.items():
            if is_linear(shell.get_submodule(path)) and is_same(made, logits):
                return LogitsLayer(prefix + path, find_pooling(shell, calls, args[0], prefix))
    shape = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
    classes = shape[-1] if isinstance(shape, tuple) else None
    fitting = [prefix + path for path, layer in network.named_modules() if is_linear(layer) and len(layer.weight) == classes]
    raise ValueError(
        f"The logits of the {owner}'s {type(network).__name__} ({shape}) are expected to be the output of one linear layer, "
        f'but they are made of more: name the one that shall guide with site=dict({argument}=...), '
        + (f'such as {fitting[-1]!r} of {fitting}. ' if fitting else 'of which there is none with as many outputs. ')
        + 'Losses on logits read what the network returns.'
    )


def is_linear(layer: nn.Module) -> Any:
    """Return whether a layer is linear in the vectors that it gets: a linear layer, or a 1x1 convolution."""
    is_pointwise = computes_as(layer, nn.Conv2d) and set(layer.kernel_size) == {1} and layer.groups == 1
    return computes_as(layer, nn.Linear) or is_pointwise


def is_same(one: Any, other: Any) -> bool:
    """Return whether two tensors are one, or one a view of the other: nothing was computed between."""
    if not isinstance(one, Tensor) or not isinstance(other, Tensor) or one.numel() != other.numel():
        return False
    return (one if one._base is None else one._base) is (other if other._base is None else other._base)


def find_pooling(network: nn.Module, calls: dict[str, tuple[Any, Any]], vectors: Tensor, prefix: str) -> str | None:
    """Return the module that averages a map to the vectors that a layer gets, None if something else does."""
    for path, (args, made) in calls.items():
        module = network.get_submodule(path)
        maps: Any = args[0] if args else None
        is_reduced = isinstance(maps, Tensor) and maps.ndim == 4 and maps.shape[2:].numel() > 1 and is_same(made, vectors)
        if is_reduced and maps.shape[1] == vectors.shape[1] and not list(module.parameters()):
            # Of known values, as its kind is called otherwise in each library, and may take a maximum.
            known = torch.rand(2, 3, 4, 4, generator=torch.Generator().manual_seed(0), device='cpu')
            if torch.allclose(module(known).flatten(1), known.mean(dim=(2, 3)).flatten(1)):
                return prefix + path
    return None
