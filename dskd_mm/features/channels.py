"""Finding out how many channels the maps of a module have."""

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, TypeVar

import torch
from torch import nn

from dskd_mm.features.tap import FeatureTap
from dskd_mm.features.widths import Channels

Result = TypeVar('Result')

IMAGE_SIZES = (224, 256, 512, 32)
"""Heights and widths of the images that are passed, until a network takes one: what most are made for, whole windows of Swin
v2, all levels of SSD, and LeNet's digits."""


def fill_channels(layers: Mapping[str, dict], build: Callable[[], nn.Module], owner: str) -> dict[str, dict]:
    """Return layers with their channels, found by a pass on the meta device where they are not given.

    Args:
        layers (Mapping[str, dict]): Layers by name: ``path``, maybe ``io`` and ``index`` as in
            :class:`~dskd_mm.features.FeatureTap`, and ``channels`` where they are known.
        build (Callable): Returns the model; called only if channels are missing.
        owner (str): How to call the model in errors.

    Returns:
        dict[str, dict]: The same layers, each with ``channels``.

    Raises:
        ValueError: If a path is unknown, or channels cannot be found.
    """
    taps = {
        name: {key: value for key, value in layer.items() if key != 'channels'}
        for name, layer in layers.items()
        if layer.get('channels') is None
    }
    found = find_channels(build(), taps, owner) if taps else {}
    return {name: {**layer, 'channels': found.get(name, layer.get('channels'))} for name, layer in layers.items()}


def find_channels(model: nn.Module, layers: Mapping[str, dict], owner: str = 'model') -> dict[str, Channels]:
    """Return how many channels layers have, each level where they differ; see :func:`find_tapped`.

    Raises:
        ValueError: As there, or if a layer gives no maps (B, C, H, W) or vectors (B, C).
    """
    return {name: _width(layers[name], shapes, owner) for name, shapes in find_tapped(model, layers, owner).items()}


@torch.no_grad()
def find_tapped(
    model: nn.Module, layers: Mapping[str, dict], owner: str = 'model', mend: str | None = None
) -> dict[str, list[tuple[int, ...]]]:
    """Return the shapes that taps capture, from one pass of ``extract_feat`` on the meta device.

    Only shapes are computed there. The model itself is left as it is, and none of its weights is copied.

    Args:
        model (nn.Module): A host's model. Without ``extract_feat`` all of it is called, as is one that holds a
            whole network as ``model``.
        layers (Mapping[str, dict]): Arguments of :class:`~dskd_mm.features.FeatureTap` by name.
        owner (str): How to call the model in errors. Defaults to 'model'.
        mend (str, optional): Which argument gives channels that are not found, for the error. Defaults to None: ``layers``.

    Returns:
        dict[str, list[tuple[int, ...]]]: Shapes by name, each level's with ``index='all'``.

    Raises:
        ValueError: If a path is unknown, or the pass fails or does not reach a layer.
    """
    mend = mend or f'layers=dict(<name>=dict({owner}=dict(path=..., channels=...), ...))'
    shell = on_meta_device(model)
    taps = {name: FeatureTap(shell, **layer, owner=owner) for name, layer in layers.items()}
    # That of mmpretrain's models of other libraries is not there, or leaves layers out.
    is_whole = isinstance(getattr(shell, 'model', None), nn.Module)
    extract = shell if is_whole else getattr(shell, 'extract_feat', shell)

    def run(images: torch.Tensor) -> dict[str, list[tuple[int, ...]]]:
        with ExitStack() as stack:
            for tap in taps.values():
                stack.enter_context(tap)
            extract(images)
            return {name: [tuple(value.shape) for value in tap.values] for name, tap in taps.items()}

    try:
        return on_first_size(shell, run)
    except Exception as error:  # of whatever kind: it is the host's code that runs
        raise ValueError(
            f'The channels of {[tap.path for tap in taps.values()]} in the {owner} ({type(model).__name__}) were not found '
            f'by passing an image through it: {type(error).__name__}: {error} Give them in the config: '
            f'{mend}.'
        ) from error


@torch.no_grad()
def find_shapes(model: nn.Module, image_size: int = IMAGE_SIZES[0]) -> tuple[dict[str, list[torch.Size]], Exception | None]:
    """Return the shapes that all modules give out in one pass on the meta device, in mode 'tensor'.

    Args:
        model (nn.Module): A host's model. It is left as it is.
        image_size (int): Height and width of the two images that are passed. Defaults to 224.

    Returns:
        tuple[dict[str, list[Size]], Exception | None]: The shapes by module, in the order of the calls, one for each tensor of
        a tuple and each call of a module that is shared by levels; and why the pass ended early, if it did: what annotations or
        values decide (proposals, queries) has no shape there. What was reached before is told nevertheless.
    """
    shell = on_meta_device(model)
    shapes: dict[str, list[torch.Size]] = {}

    def note(name: str, output: Any) -> None:
        tensors = [value for value in (output if isinstance(output, (tuple, list)) else [output]) if torch.is_tensor(value)]
        shapes.setdefault(name, []).extend(tensor.shape for tensor in tensors)

    for name, module in shell.named_modules():
        if name:
            module.register_forward_hook(lambda module, inputs, output, name=name: note(name, output))
    try:
        with torch.device('meta'):
            shell(images_for(shell, image_size), mode='tensor')
    except Exception as error:  # of whatever kind: it is the host's code that runs
        return shapes, error
    return shapes, None


def on_meta_device(model: nn.Module) -> Any:
    """Return a copy of a model in evaluation mode whose tensors have shapes, but no values."""
    # What deepcopy takes for copied already, so that no weight is, however large the model.
    known = {id(tensor): tensor.detach().to('meta') for tensor in (*model.parameters(), *model.buffers())}
    # A teacher may be kept in half precision, where images of full precision have no place.
    shell = copy.deepcopy(model, known).float()
    shell.eval()  # VGG of mmpretrain returns nothing here
    return shell


def images_for(model: nn.Module, size: int) -> torch.Tensor:
    """Return two images with the channels that a model's first convolution takes, 3 without one."""
    channels = next((layer.in_channels for layer in model.modules() if isinstance(layer, nn.Conv2d)), 3)
    return torch.zeros(2, channels, size, size)


def on_first_size(network: nn.Module, run: Callable[[torch.Tensor], Result]) -> Result:
    """Return what a function makes of two images on the meta device, of the first size that it does not fail for.

    That is the one that the network tells, or the first of :data:`IMAGE_SIZES`. If all fail, the error is that of the first.
    """
    errors: list[Exception] = []
    for size in dict.fromkeys((*told_sizes(network), *IMAGE_SIZES)):
        try:
            with torch.device('meta'):
                return run(images_for(network, size))
        except Exception as error:  # of whatever kind: it is the host's code that runs
            errors.append(error)
    raise errors[0]


def told_sizes(network: nn.Module) -> list[int]:
    """Return the height and width of the images that a network was made for, by its own word."""
    told: list[Any] = [getattr(getattr(network, 'config', None), 'image_size', None)]
    told += [getattr(module, 'img_size', None) for module in network.modules()]
    sizes = [size[0] if isinstance(size, Sequence) and len(size) else size for size in told]
    return [size for size in sizes if isinstance(size, int)][:1]


def _width(layer: Mapping[str, Any], shapes: list[tuple[int, ...]], owner: str) -> Channels:
    widths = tuple(shape[1] for shape in shapes if len(shape) in (2, 4))
    if len(widths) == len(shapes):
        if len(set(widths)) == 1:
            return widths[0]
        if layer.get('index') == 'all':
            return widths
    raise ValueError(
        f'The {layer.get("io", "output")} of {layer["path"]!r} in the {owner} is expected to give maps (B, C, H, W) or vectors '
        f'(B, C) of one width, but got the shapes {sorted(set(shapes))}. Tap another module, one element by index=..., or '
        "each as a level by index='all'."
    )
