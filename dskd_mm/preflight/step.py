"""Does one training step on random images run, and what memory would it need?"""

import copy
import logging
import math
import os.path as osp
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.config import Config, ConfigDict
from mmengine.logging import MessageHub, MMLogger
from mmengine.model import revert_sync_batchnorm
from mmengine.optim import OptimWrapper, build_optim_wrapper
from mmengine.registry import MODELS as MMENGINE_MODELS
from mmengine.registry import OPTIMIZERS
from torch import Tensor, nn

from dskd_mm.distillers.base import Distiller
from dskd_mm.preflight.data import pipeline_size
from dskd_mm.preflight.report import Report, explain
from dskd_mm.utils.config import HOSTS, host_of, model_config, nodes, show_student, student_config, type_name
from dskd_mm.utils.synthetic import synthetic_batch

SIZES: Mapping[str, tuple[int, int]] = dict(mmpretrain=(64, 64), mmdet=(128, 160), mmseg=(64, 128))
"""Height and width of the synthetic images, if those of the config are larger."""
GiB = 1024**3


@dataclass(frozen=True)
class Step:
    """One step of training.

    Attributes:
        log (Mapping[str, Any]): What is logged.
        unused (list[str]): The parameters without a gradient.
        seconds (float): How long it took.
        kept (int): Bytes that the forward pass kept for the backward pass.
    """

    log: Mapping[str, Any]
    unused: list[str]
    seconds: float
    kept: int


def check_step(report: Report) -> None:
    """Take one training step on random images, of a reduced size and on the CPU; tell the memory that the full size needs."""
    host = host_of(report.cfg)
    if report.model is None or any(finding.part == 'models' for finding in report.faults):
        report.note('step', 'left out: the models have faults')
        return
    if host not in HOSTS:
        report.note('step', f'left out: random batches are known for {", ".join(HOSTS)}, and the model is of none of them')
        return
    with report.faults_in('step'), tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        model = revert_sync_batchnorm(MMENGINE_MODELS.build(model_config(report.cfg)))
        if isinstance(model, Distiller) and not report.has_teacher_weights:
            for i, teacher in enumerate(model.teachers):
                teacher.checkpoint, teacher.strict = osp.join(folder, f'random_{i}.pth'), True
                torch.save(dict(state_dict=teacher.build_model().state_dict()), teacher.checkpoint)
            report.note('step', "the teacher's weights are random ones")
        optim_wrapper = build_optimizer(model, report.cfg)
        wanted = report.image_size or pipeline_size(report.cfg)
        images, size = (4 if host == 'mmpretrain' else 2), synthetic_size(report.cfg, host, wanted)
        if report.ends_in_one_image:
            images = 1
            report.note('step', 'of a single image, as in the last batch of an epoch')
        try:
            step = take_step(model, optim_wrapper, synthetic_batch(report.cfg, images, size, scope=host), size)
        except Exception:
            shared = plain_failure(report.cfg, host, images, size)
            if shared is None:
                raise
            text = f'left out: the plain model fails on random images of {size[0]}x{size[1]}, too'
            report.note('step', f'{text} ({explain(shared)})')
            return
        report_step(report, step)
        report_memory(report, model, step.kept, images, size, wanted)


def synthetic_size(cfg: Config, host: str, wanted: tuple[int, int] | None) -> tuple[int, int]:
    """Return height and width of the synthetic images.

    Args:
        cfg (Config): The whole config.
        host (str): One of :data:`SIZES`.
        wanted (tuple[int, int], optional): The size of the training images, None if it is not known.
    """
    fixed = [node['img_size'] for node in nodes(cfg.model) if isinstance(node.get('img_size'), int)]
    if fixed:  # transformers with a table of positions
        return fixed[0], fixed[0]
    return wanted if wanted is not None and math.prod(wanted) < math.prod(SIZES[host]) else SIZES[host]


def build_optimizer(model: nn.Module, cfg: Config) -> OptimWrapper:
    """Build the config's optimizer without what has no meaning for one step on a CPU.

    Raises:
        KeyError: If there is no such optimizer.
    """
    wrapper = copy.deepcopy(cfg.optim_wrapper)
    if isinstance(model, Distiller):  # as tools/train.py does
        wrapper = show_student(wrapper)
    for key in ('type', 'loss_scale', 'dtype', 'use_fsdp', 'accumulative_counts'):
        wrapper.pop(key, None)
    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.ERROR)  # there is a line for every frozen parameter
    kind = (wrapper.get('optimizer') or {}).get('type')
    try:
        if isinstance(kind, str) and OPTIMIZERS.get(kind) is None:  # mmengine calls None and says no more
            raise KeyError(f'{kind} is not in the optimizer registry')
        return build_optim_wrapper(model, ConfigDict(type='OptimWrapper', **wrapper))
    finally:
        logger.setLevel(level)


def preprocess(model: Any, batch: dict[str, list], size: tuple[int, int]) -> dict[str, Any]:
    """Run a model's data preprocessor; one that fills images up to a fixed size does so to this one."""
    for module in model.modules():
        if getattr(module, 'size', None) is not None and hasattr(module, 'pad_val'):
            module.size = size
    hub = MessageHub.get_current_instance()
    for key in ('epoch', 'iter'):  # which some heads and preprocessors ask the runner for
        if key not in hub.runtime_info:
            hub.update_info(key, 0)
    return model.train().data_preprocessor(batch, training=True)


def take_step(model: Any, optim_wrapper: OptimWrapper, batch: dict[str, list], size: tuple[int, int]) -> Step:
    """Take one step of training.

    Args:
        model (BaseModel): The model; it is trained.
        optim_wrapper (OptimWrapper): Its optimizer.
        batch (dict): What a data loader yields.
        size (tuple[int, int]): Height and width of the images.
    """
    data = preprocess(model, batch, size)
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
    return Step(log, unused, time.perf_counter() - start, sum(kept.values()))


def plain_failure(cfg: Config, host: str, images: int, size: tuple[int, int]) -> Exception | None:
    """Return what the plain model raises on such a batch: no fault of the distillation, and perhaps of the batch alone."""
    try:
        model = revert_sync_batchnorm(MMENGINE_MODELS.build(model_config(student_config(cfg))))
        batch = preprocess(model, synthetic_batch(cfg, images, size, scope=host), size)
        model.parse_losses(model(**batch, mode='loss'))
    except Exception as error:
        return error
    return None


def report_step(report: Report, step: Step) -> None:
    """Tell losses, time and parameters without a gradient; losses of the distillation that are not finite are a fault."""
    losses = {key: float(value) for key, value in step.log.items() if 'loss' in key}
    lost = [key for key, value in losses.items() if not math.isfinite(value)]
    text = ', '.join(f'{key} {value:.3g}' for key, value in losses.items())
    if lost and math.isfinite(losses.get('loss_student', math.nan)):  # a distiller logs it
        report.fault('step', f'Expected finite losses, but {", ".join(lost)} of the step with random images are not: {text}')
    elif lost:
        report.note('step', f"not finite on random images: {', '.join(lost)}, the student's own included: {text}")
    else:
        report.note('step', f'{step.seconds:.1f} s; {text}')
    if step.unused and not report.cfg.get('find_unused_parameters'):
        names = ', '.join(step.unused[:3]) + (', ...' if len(step.unused) > 3 else '')
        report.note(
            'unused parameters',
            f'{len(step.unused)} get no gradient ({names}): with several processes set find_unused_parameters=True.',
        )


def report_memory(
    report: Report, model: nn.Module, kept: int, images: int, size: tuple[int, int], wanted: tuple[int, int] | None
) -> None:
    """Tell the memory that training needs, scaled up from a step with synthetic images."""
    weights = weight_bytes(model, report.cfg.optim_wrapper.get('optimizer') or {})
    batch = int((report.cfg.get('train_dataloader') or {}).get('batch_size') or images)
    full = wanted or size
    activations = kept * batch / images * math.prod(full) / math.prod(size)
    report.note(
        'memory',
        f'about {(weights + activations) / GiB:.2f} GiB in float32 for {batch} images of {full[0]}x{full[1]} on a device: '
        f'{weights / GiB:.2f} weights, gradients and optimizer, {activations / GiB:.2f} activations. Scaled up from a step '
        f'with {images} images of {size[0]}x{size[1]}{"" if wanted else " (the size of the config is not known)"}; the '
        "device's libraries come on top.",
    )


def weight_bytes(model: nn.Module, optimizer: Mapping[str, Any]) -> int:
    """Return the bytes of weights, gradients, of what the optimizer keeps of each, and of a distiller's teacher.

    Args:
        model (nn.Module): The model.
        optimizer (Mapping[str, Any]): Config of the optimizer: one of the Adam family keeps two numbers a weight, momentum one.
    """
    states = 2 if 'Adam' in type_name(dict(optimizer)) else int(bool(optimizer.get('momentum')))
    tensors = [*model.parameters(), *model.buffers()]
    for teacher in model.teachers if isinstance(model, Distiller) else []:
        if teacher.model is not None:
            tensors += [*teacher.model.parameters(), *teacher.model.buffers()]
    copies = {True: 2 + states, False: 1}
    return sum(tensor.numel() * tensor.element_size() * copies[tensor.requires_grad] for tensor in tensors)
