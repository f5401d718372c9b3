"""Calls of mmcv's operators: what reference/record.py records of compiled ones, and what the tests compare with it.

Every input is a multiple of a power of two that float16 holds exactly, so the same reference serves all precisions.
"""

import importlib
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

Run = Callable[['Draw'], list[Tensor]]


class Draw:
    """Makes the tensors of a case: the same numbers on every machine, in the precision and on the device asked for."""

    def __init__(self, name: str, dtype: torch.dtype, device: str) -> None:
        self.random = np.random.RandomState(sum(map(ord, name)))
        self.dtype, self.device = dtype, device

    def tensor(self, values: Any) -> Tensor:
        return torch.as_tensor(np.asarray(values, dtype=np.float16).astype(np.float64)).to(self.device, self.dtype)

    def normal(self, *shape: int) -> Tensor:
        return self.tensor(np.round(self.random.randn(*shape) * 64) / 64)

    def uniform(self, *shape: int) -> Tensor:
        return self.tensor(np.round(self.random.rand(*shape) * 128) / 128)

    def distinct(self, count: int) -> Tensor:
        return self.tensor((self.random.permutation(count) + 1) / 128)

    def integers(self, high: int, *shape: int) -> Tensor:
        return torch.as_tensor(self.random.randint(0, high, shape)).to(self.device)

    def boxes(self, count: int, extent: float = 32) -> Tensor:
        corner = np.round(self.random.rand(count, 2) * extent * 4) / 4
        size = np.round(self.random.rand(count, 2) * extent * 2) / 4
        return self.tensor(np.concatenate([corner, corner + size], axis=1).reshape(count, 4))

    def rois(self, count: int, images: int = 2, extent: float = 32) -> Tensor:
        return torch.cat([self.integers(images, count, 1).to(self.dtype), self.boxes(count, extent)], dim=1)


def with_gradients(draw: Draw, function: Callable[..., Tensor], *inputs: Tensor | None) -> list[Tensor]:
    """Return the output and the gradients of a random sum of it by all inputs of floating point."""
    leaves = [t.clone().requires_grad_() if t is not None and t.is_floating_point() else t for t in inputs]
    output = function(*leaves)
    output.backward(draw.normal(*output.shape))
    return [output.detach(), *(leaf.grad for leaf in leaves if leaf is not None and leaf.requires_grad)]


def boxes_and_scores(draw: Draw, kind: str) -> tuple[Tensor, Tensor]:
    count = dict(empty=0, one=1).get(kind, 60)
    boxes, scores = draw.boxes(count), draw.distinct(count)
    if kind == 'zero area':
        boxes[::3, 2:] = boxes[::3, :2]
        boxes[30:40] = boxes[30]
    if kind == 'ties':
        scores = (scores * 4).round() / 4
    return boxes, scores


KINDS = ('random', 'empty', 'one', 'zero area', 'ties')


def nms(kind: str, **kwargs: Any) -> Run:
    from mmcv.ops import nms as call

    return lambda draw: list(call(*boxes_and_scores(draw, kind), **kwargs))


def nms_at_the_threshold(threshold: float) -> Run:
    """Pairs of boxes whose overlap is, in float32, as near the threshold as can be: 2n / (2n + 4) and neighbours."""
    from mmcv.ops import nms as call

    def run(draw: Draw) -> list[Tensor]:
        tens = np.arange(1, 41)
        rows = [[0, 20 * k, 10, 20 * k + 10] for k in tens] + [[0, 20 * k, k * 0.25, 20 * k + 10] for k in tens]
        boxes = torch.tensor(rows, dtype=torch.float64).to(draw.device, draw.dtype)
        return list(call(boxes, draw.distinct(80), threshold))

    return run


def batched_nms(classes: int, **kwargs: Any) -> Run:
    from mmcv.ops import batched_nms as call

    def run(draw: Draw) -> list[Tensor]:
        boxes, scores = boxes_and_scores(draw, 'random')
        return list(call(boxes, scores, draw.integers(classes, len(boxes)), **kwargs))

    return run


def soft_nms(kind: str, **kwargs: Any) -> Run:
    from mmcv.ops import soft_nms as call

    return lambda draw: list(call(*boxes_and_scores(draw, kind), **kwargs))


def nms_match(kind: str) -> Run:
    from mmcv.ops import nms_match as call

    def run(draw: Draw) -> list[Tensor]:
        boxes, scores = boxes_and_scores(draw, kind)
        groups = call(torch.cat([boxes, scores[:, None]], dim=1), 0.4)
        return [
            torch.tensor([len(group) for group in groups], dtype=torch.long),
            torch.cat([*groups, torch.zeros(0).long().to(draw.device)]),
        ]

    return run


def pooling(name: str, kind: str, size: tuple[int, int] = (3, 4), scale: float = 0.5, **kwargs: Any) -> Run:
    from mmcv import ops

    def run(draw: Draw) -> list[Tensor]:
        rois = draw.rois(dict(empty=0, one=1).get(kind, 6))
        if kind == 'zero area':
            rois[::2, 3:] = rois[::2, 1:3]
        if kind == 'outside':
            rois[:, 1:] = rois[:, 1:] * 2 - 24
        features = draw.normal(2, 3, 12, 16)
        return with_gradients(draw, lambda x: getattr(ops, name)(x, rois, size, scale, *kwargs.values()), features)

    return run


def off_the_grid(draw: Draw, *shape: int) -> Tensor:
    """Return offsets that never hit a pixel's centre, where an interpolation has no one derivative."""
    return draw.normal(*shape) * 2 + 1 / 64


def deform_conv(groups: int, deform_groups: int, stride: int, padding: int, dilation: int) -> Run:
    from mmcv.ops import deform_conv2d as call

    def run(draw: Draw) -> list[Tensor]:
        x, weight = draw.normal(2, 4, 5, 6), draw.normal(6, 4 // groups, 3, 3)
        size = [(n + 2 * padding - 2 * dilation - 1) // stride + 1 for n in (5, 6)]
        offset = off_the_grid(draw, 2, deform_groups * 18, *size)
        return with_gradients(draw, lambda *t: call(*t, stride, padding, dilation, groups, deform_groups), x, offset, weight)

    return run


def modulated(groups: int, deform_groups: int, stride: int, padding: int, dilation: int, bias: bool) -> Run:
    from mmcv.ops import modulated_deform_conv2d as call

    def run(draw: Draw) -> list[Tensor]:
        x, weight = draw.normal(2, 4, 5, 6), draw.normal(6, 4 // groups, 3, 3)
        size = [(n + 2 * padding - 2 * dilation - 1) // stride + 1 for n in (5, 6)]
        offset, mask = off_the_grid(draw, 2, deform_groups * 18, *size), draw.uniform(2, deform_groups * 9, *size)
        inputs = (x, offset, mask, weight, draw.normal(6) if bias else None)
        return with_gradients(draw, lambda *t: call(*t, stride, padding, dilation, groups, deform_groups), *inputs)

    return run


def attention(levels: list[tuple[int, int]], queries: int) -> Run:
    from mmcv.ops.multi_scale_deform_attn import MultiScaleDeformableAttnFunction

    def run(draw: Draw) -> list[Tensor]:
        shapes = torch.tensor(levels, device=draw.device)
        starts = torch.cat([shapes.new_zeros(1), shapes.prod(1).cumsum(0)[:-1]])
        value = draw.normal(2, int(shapes.prod(1).sum()), 2, 4)
        locations = draw.uniform(2, queries, 2, len(levels), 3, 2) * 1.5 - 0.25  # some are outside
        weights = draw.uniform(2, queries, 2, len(levels), 3)
        call = MultiScaleDeformableAttnFunction.apply
        return with_gradients(draw, lambda v, p, w: call(v, shapes, starts, p, w, 64), value, locations, weights)

    return run


def focal(name: str, gamma: float, alpha: float, weighed: bool, reduction: str, extreme: bool = False) -> Run:
    from mmcv import ops

    def run(draw: Draw) -> list[Tensor]:
        logits = draw.normal(9, 5) * (32 if extreme else 2)
        target = draw.integers(5 if weighed or name == 'softmax_focal_loss' else 6, 9)  # 5 is background
        weight = draw.uniform(5) if weighed else None
        return with_gradients(draw, lambda x: getattr(ops, name)(x, target, gamma, alpha, weight, reduction), logits)

    return run


def masked_conv(kernel: int, padding: int, share: float) -> Run:
    from mmcv.ops.masked_conv import masked_conv2d as call

    def run(draw: Draw) -> list[Tensor]:
        mask = (draw.uniform(1, 7, 8) < share).to(draw.dtype)
        x, weight, bias = draw.normal(1, 3, 7, 8), draw.normal(4, 3, kernel, kernel), draw.normal(4)
        return [call(x, mask, weight, bias, padding)]

    return run


def carafe(kernel: int, groups: int, scale: int) -> Run:
    from mmcv.ops.carafe import carafe as call

    def run(draw: Draw) -> list[Tensor]:
        features, masks = draw.normal(2, 4, 5, 6), draw.uniform(2, groups * kernel**2, 5 * scale, 6 * scale)
        return with_gradients(draw, lambda x, m: call(x, m, kernel, groups, scale), features, masks)

    return run


def carafe_naive(kernel: int, groups: int, scale: int) -> Run:
    """Both directions by the operators themselves: mmcv lets nobody differentiate it on a CPU."""
    module = importlib.import_module('mmcv.ops.carafe')

    def run(draw: Draw) -> list[Tensor]:
        features, masks = draw.normal(2, 4, 5, 6), draw.uniform(2, groups * kernel**2, 5 * scale, 6 * scale)
        output, gradients = draw.normal(2, 4, 5 * scale, 6 * scale), (features * 0, masks * 0)
        shape = dict(kernel_size=kernel, group_size=groups, scale_factor=scale)
        module.ext_module.carafe_naive_backward(output, features, masks, *gradients, **shape)
        module.ext_module.carafe_naive_forward(features, masks, output, **shape)
        return [output, *gradients]

    return run


def psa_mask(kind: str, window: tuple[int, int]) -> Run:
    from mmcv.ops import PSAMask

    def run(draw: Draw) -> list[Tensor]:
        return with_gradients(draw, PSAMask(kind, window), draw.normal(2, window[0] * window[1], 5, 4))

    return run


def bbox_overlaps(mode: str, aligned: bool, offset: int) -> Run:
    from mmcv.ops import bbox_overlaps as call

    def run(draw: Draw) -> list[Tensor]:
        first = draw.boxes(6)
        return [call(first, draw.boxes(6 if aligned else 4), mode, aligned, offset)]

    return run


class Case(NamedTuple):
    """A call, and how near the compiled one's float32 values ours must be: 0 is bit for bit.

    `live` ones are compared with a compiled mmcv at hand only: the order in which torch sorts equal scores is the machine's.
    """

    run: Run
    tolerance: float = 0.0
    live: bool = False


def cases() -> dict[str, Case]:
    """Return all cases by name, which begins with the operator's."""
    table: dict[str, Case] = {}
    for kind in KINDS:
        table[f'nms {kind}'] = Case(nms(kind, iou_threshold=0.4), live=kind == 'ties')
        table[f'nms_match {kind}'] = Case(nms_match(kind), live=kind == 'ties')
        for method in ('naive', 'linear', 'gaussian'):
            run = soft_nms(kind, iou_threshold=0.3, sigma=0.5, min_score=0.05, method=method)
            table[f'softnms {method} {kind}'] = Case(run, 1e-6 if method == 'gaussian' else 0)
        for name, tolerance in (('roi_align', 0), ('roi_pool', 0)):
            table[f'{name} {kind}'] = Case(pooling(name, kind if kind != 'ties' else 'outside'), tolerance)
    for threshold in (0.1, 0.3, 0.6, 0.7, 0.9):
        table[f'nms at {threshold}'] = Case(nms_at_the_threshold(threshold))
    table['nms offset'] = Case(nms('random', iou_threshold=0.4, offset=1))
    table['nms offset zero area'] = Case(nms('zero area', iou_threshold=0.4, offset=1))
    table['nms score_threshold'] = Case(nms('random', iou_threshold=0.4, score_threshold=0.3, max_num=7))
    table['nms batched'] = Case(batched_nms(20, nms_cfg=dict(type='nms', iou_threshold=0.3, max_num=9)))
    table['nms batched in parts'] = Case(batched_nms(5, nms_cfg=dict(type='nms', iou_threshold=0.3, split_thr=10)))
    table['nms class-agnostic'] = Case(batched_nms(20, nms_cfg=dict(type='nms', iou_threshold=0.3), class_agnostic=True))
    table['softnms batched'] = Case(batched_nms(3, nms_cfg=dict(type='soft_nms', iou_threshold=0.3, min_score=0.1)))
    table['softnms offset'] = Case(soft_nms('random', iou_threshold=0.3, method='linear', offset=1))
    for aligned in (False, True):
        for ratio in (0, 2):
            run = pooling('roi_align', 'random', sampling_ratio=ratio, pool_mode='avg', aligned=aligned)
            table[f'roi_align sampling_ratio={ratio} aligned={aligned}'] = Case(run)
    for number, geometry in enumerate([(1, 1, 1, 1, 1), (2, 2, 2, 1, 1), (1, 4, 1, 2, 2), (2, 1, 1, 0, 1)]):
        table[f'deform_conv {geometry}'] = Case(deform_conv(*geometry), 2e-6)
        table[f'modulated_deform_conv {geometry}'] = Case(modulated(*geometry, bias=number % 2 == 0), 2e-6)
    table['ms_deform_attn four levels'] = Case(attention([(6, 5), (3, 4), (2, 2), (1, 1)], queries=5), 1e-5)
    table['ms_deform_attn one level'] = Case(attention([(4, 7)], queries=1), 1e-5)
    for name in ('sigmoid_focal_loss', 'softmax_focal_loss'):
        table[f'{name} mean'] = Case(focal(name, 2.0, 0.25, weighed=False, reduction='mean'), 1e-6)
        table[f'{name} class weights'] = Case(focal(name, 1.5, 0.5, weighed=True, reduction='sum'), 1e-6)
        table[f'{name} large logits'] = Case(focal(name, 2.0, 0.25, False, reduction='sum', extreme=True), 1e-6)
    table['masked_conv'] = Case(masked_conv(3, 1, 0.3), 1e-6)
    table['masked_conv all'] = Case(masked_conv(5, 2, 2.0), 1e-6)
    table['masked_conv none'] = Case(masked_conv(1, 0, -1.0))
    for kernel, groups, scale in ((5, 1, 2), (3, 2, 3), (1, 4, 1)):
        table[f'carafe {kernel} {groups} {scale}'] = Case(carafe(kernel, groups, scale), 1e-6)
        table[f'carafe_naive {kernel} {groups} {scale}'] = Case(carafe_naive(kernel, groups, scale), 1e-6)
    for kind in ('collect', 'distribute'):
        table[f'psamask {kind} small'] = Case(psa_mask(kind, (3, 5)))
        table[f'psamask {kind} whole'] = Case(psa_mask(kind, (9, 7)))
    for mode, aligned, offset in (('iou', False, 0), ('iou', True, 1), ('iof', False, 1), ('iof', True, 0)):
        table[f'bbox_overlaps {mode} {aligned} {offset}'] = Case(bbox_overlaps(mode, aligned, offset))
    return table
