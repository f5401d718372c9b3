"""Models without memory for their weights, what is said of them, and one step of training."""

import copy
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.model import BaseModule
from mmengine.optim import build_optim_wrapper
from torch import Tensor, nn

from dskd_mm.distillers.base import Distiller
from dskd_mm.sites import Port
from dskd_mm.utils.config import show_student, type_name


def skeleton(build: Callable[[], nn.Module]) -> nn.Module:
    """Build a model without memory for its weights, or with it if its constructor computes with them."""
    try:
        with torch.device('meta'):
            return build()
    except Exception:
        # Whatever is wrong with the config itself is raised again, by its own words.
        return build()


def translates_weights(module: nn.Module) -> bool:
    """Whether a model has a way of its own to load what ``init_cfg`` names, as transformers have for their authors' files."""
    return isinstance(module, BaseModule) and type(module).init_weights is not BaseModule.init_weights


def needs_whole_teacher(distiller: Distiller) -> bool:
    """Whether more of the teacher is loaded than its classifier."""
    return distiller.uses_teacher_forward or not distiller.teacher_port.classifiers


def count_parameters(model: nn.Module) -> str:
    """Number of parameters in millions."""
    return f'{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters'


def describe(port: Port) -> str:
    """Where a model is tapped, in a line."""
    text = f'{port.io} of {", ".join(port.features[:2])}{", ..." if len(port.features) > 2 else ""}, {port.channels} channels'
    if port.num_classes:
        text += f', {port.num_classes} classes ({"sigmoid" if port.sigmoid else "softmax"})'
    if port.strides:
        text += f', {port.anchors} anchors at the strides {", ".join(str(w) for w, _ in port.strides)}'
    layers = [f'{name}: {layer.path}, {layer.channels} channels' for name, layer in port.layers.items()]
    return '; '.join([text, *layers])


def weight_bytes(model: nn.Module, optimizer: Mapping[str, Any]) -> int:
    """Bytes of a model's weights and their gradients, of what the optimizer keeps of each, and of a distiller's teacher.

    Args:
        model (nn.Module): The model.
        optimizer (Mapping[str, Any]): Config of the optimizer: one of the Adam family keeps two numbers a weight, momentum one.
    """
    states = 2 if 'Adam' in type_name(dict(optimizer)) else int(bool(optimizer.get('momentum')))
    tensors = [*model.parameters(), *model.buffers()]
    if isinstance(model, Distiller) and model.teacher.model is not None:
        tensors += [*model.teacher.model.parameters(), *model.teacher.model.buffers()]
    copies = {True: 2 + states, False: 1}
    return sum(tensor.numel() * tensor.element_size() * copies[tensor.requires_grad] for tensor in tensors)


def take_step(
    model: Any,
    cfg: Config,
    batch: dict[str, list],
    report: Callable[[Mapping[str, Any], Sequence[str], float], None],
) -> int:
    """One step of a model with the config's optimizer.

    Args:
        model (BaseModel): The model; it is trained.
        cfg (Config): Its config.
        batch (dict): What a data loader yields.
        report (Callable): Is told what is logged, the parameters without a gradient, and the seconds.

    Returns:
        int: Bytes that the forward pass kept for the backward pass.
    """
    wrapper = copy.deepcopy(cfg.optim_wrapper)
    if isinstance(model, Distiller):  # as tools/train.py does
        wrapper = show_student(wrapper)
    for key in ('type', 'loss_scale', 'dtype', 'use_fsdp', 'accumulative_counts'):  # of no meaning for one step on a CPU
        wrapper.pop(key, None)
    optim_wrapper = build_optim_wrapper(model, ConfigDict(type='OptimWrapper', **wrapper))
    data = model.train().data_preprocessor(batch, training=True)
    weights = {tensor.untyped_storage().data_ptr() for tensor in [*model.parameters(), *model.buffers()]}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    start = time.perf_counter()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        total, log = model.parse_losses(model(**data, mode='loss'))
    model.zero_grad(set_to_none=True)
    total.backward()
    unused = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    optim_wrapper.step()
    report(log, unused, time.perf_counter() - start)
    return sum(kept.values())
