"""Write the plain student as an ONNX graph and compare what onnxruntime makes of it with PyTorch.

The graph goes from preprocessed images to what the model's heads give out: a classifier's logits, a segmenter's logits at the
stride of its head, the maps of classes and boxes of a one-stage detector. What follows them is the host's and not in the graph:
softmax, resizing, decoding of boxes and non-maximum suppression.
"""

import argparse
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import DefaultScope
from torch import Tensor, nn

from dskd_mm.cli.common import add_config_arguments, in_one_line, read_config
from dskd_mm.features import images_for
from dskd_mm.input_adapter import channel_map
from dskd_mm.utils.checkpoint import load_plain_model
from dskd_mm.utils.config import model_config, student_config

INPUT = 'inputs'
TOLERANCE = 1e-2
"""Largest difference of outputs that is rounding, relative to their largest value; wrong graphs differ by as much as that."""


def parse_args(argv: Sequence[str] | None = None, prog: str | None = None) -> argparse.Namespace:
    """Parse the command line; that of the process by default."""
    parser = argparse.ArgumentParser(prog, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_config_arguments(parser)
    parser.add_argument('checkpoint', help='checkpoint of the distiller or of the plain student')
    parser.add_argument('--out', default='student.onnx', help='file to write; default: %(default)s')
    parser.add_argument(
        '--size', type=int, nargs='+', default=[224], metavar='PIXELS', help='height and width of the images; default: 224'
    )
    parser.add_argument('--opset', type=int, default=17, help='version of the operators; default: %(default)s')
    args = parser.parse_args(argv)
    if len(args.size) > 2:
        parser.error(f'--size expects one number, or height and width, but got {args.size}.')
    return args


def main(argv: Sequence[str] | None = None, prog: str | None = None) -> None:
    """Run the command."""
    args = parse_args(argv, prog)
    with in_one_line(prog or 'onnx'):
        cfg = student_config(read_config(args))
        with DefaultScope.overwrite_default_scope(cfg.get('default_scope') or 'mmengine'):
            model = MMENGINE_MODELS.build(model_config(cfg))
            load_plain_model(model, args.checkpoint)
            channels = images_for(model, 1).shape[1]
            images = torch.rand(2, channels, args.size[0], args.size[-1], generator=torch.Generator().manual_seed(0))
            names, difference, largest = export_checked(Graph(model).eval(), images, args.out, args.opset)
    print(f'{args.out}: {type(model).__name__}, {", ".join(names)}')
    print(preprocessing(model, images.shape[1]))
    print(f'onnxruntime differs from PyTorch by {difference:.1e} at most; the largest value is {largest:.1e}.')


class Graph(nn.Module):
    """A host's model from preprocessed images to the tensors of its heads, in one tuple.

    Args:
        model (nn.Module): The model.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Map images (B, C, H, W) to what ``mode='tensor'`` gives, flattened."""
        return tuple(tensor for _, tensor in leaves(self.model(images, mode='tensor')))


def leaves(outputs: Any, name: str = 'output') -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors in nested lists, tuples and dicts, each with a name that tells its place."""
    if isinstance(outputs, Tensor):
        yield name, outputs
    elif isinstance(outputs, Mapping):
        for key, value in outputs.items():
            yield from leaves(value, f'{name}_{key}')
    elif isinstance(outputs, (list, tuple)):
        for index, value in enumerate(outputs):
            yield from leaves(value, f'{name}_{index}')


def export_checked(graph: Graph, images: Tensor, path: str, opset: int) -> tuple[list[str], float, float]:
    """Write the graph for any number of images, or for one where the model's code counts them, and compare it.

    Args:
        graph (Graph): The model.
        images (Tensor): Two preprocessed images (2, C, H, W). The graph is for their size.
        path (str): File to write.
        opset (int): Version of ONNX's operators.

    Returns:
        tuple[list[str], float, float]: Names of input and outputs with their shapes, the largest absolute difference
        between onnxruntime and PyTorch, and the largest absolute value.

    Raises:
        ImportError: If onnx or onnxruntime is not installed.
        ValueError: If the model needs more than images for its heads, or no graph does what it does.
    """
    for batch in (images, images[:1]):
        names = export(graph, batch, path, opset)
        found, expected = run_both(graph, batch, path)
        if [x.shape for x in found] == [x.shape for x in expected]:
            difference = max(float((a - b).abs().max()) for a, b in zip(found, expected, strict=True))
            largest = max(float(b.abs().max()) for b in expected)
            if difference <= TOLERANCE * max(largest, 1e-6):
                return names, difference, largest
    Path(path).unlink()
    raise ValueError(
        f"onnxruntime's outputs are expected to be PyTorch's, but those of {type(graph.model).__name__} differ: its code "
        'cannot be traced. Export it with mmdeploy, which rewrites such code: it takes the plain student that `dskd export` '
        'writes.'
    )


def export(graph: Graph, images: Tensor, path: str, opset: int) -> list[str]:
    """Write the graph, for any number of images if it is traced with several; see :func:`export_checked`."""
    try:
        import onnx  # noqa: F401
    except ImportError as error:
        raise ImportError("the export expects the packages onnx and onnxruntime: pip install 'dskd_mm[onnx]'.") from error
    try:
        with torch.no_grad():
            outputs = dict(leaves(graph.model(images, mode='tensor')))
    except Exception as error:
        raise ValueError(
            f'{type(graph.model).__name__} expects more than images for its heads (annotations, proposals or sizes: '
            f'{type(error).__name__}: {str(error)[:80]}), so it has no graph from images to heads. Export it with mmdeploy, '
            'which is made for two-stage and query-based models: it takes the plain student that `dskd export` writes.'
        ) from error
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # the tracer's, of the hosts' code: the comparison tells whether the graph is right
        try:
            torch.onnx.export(
                graph,
                (images,),
                path,
                input_names=[INPUT],
                output_names=list(outputs),
                dynamic_axes={name: {0: 'batch'} for name in (INPUT, *outputs)} if len(images) > 1 else None,
                opset_version=opset,
                dynamo=False,  # the other exporter takes a minute and another package, for the same graph
            )
        except (RuntimeError, ValueError) as error:  # torch's own, of operators and versions
            raise ValueError(
                f"ONNX's version {opset} is expected to have all operators of {type(graph.model).__name__}, but torch cannot "
                f'write them ({str(error).splitlines()[0][:160]}): try another --opset, or export it with mmdeploy.'
            ) from error
    count = 'batch' if len(images) > 1 else 1
    shapes = {INPUT: images, **outputs}
    return [f'{name} {(count, *tensor.shape[1:])}'.replace("'", '') for name, tensor in shapes.items()]


def run_both(graph: Graph, images: Tensor, path: str) -> tuple[list[Tensor], list[Tensor]]:
    """Return what onnxruntime and PyTorch make of other images than those of the export, of all of them and of the first."""
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError("the comparison expects the package onnxruntime: pip install 'dskd_mm[onnx]'.") from error
    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    found, expected = [], []
    for batch in (images.flip(3), images[:1].flip(2)):
        with torch.no_grad():
            expected += graph(batch)
        found += [torch.from_numpy(array) for array in session.run(None, {INPUT: batch.numpy()})]
    return found, expected


def preprocessing(model: nn.Module, channels: int) -> str:
    """Return in words what has to be done to an image, as it is read from a file in BGR order, before the graph."""
    order, scale, shift = channel_map(cast(nn.Module, model.data_preprocessor), channels, 'student')
    listed = ', '.join(f'channel {c} * {a:.6g} {b:+.6g}' for c, a, b in zip(order, scale.tolist(), shift.tolist(), strict=True))
    return f'{INPUT} are made of images as the pipeline loads them (by OpenCV: BGR, 0 to 255): {listed}.'
