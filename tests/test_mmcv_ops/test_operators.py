"""Operators in PyTorch return what mmcv's compiled ones do."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

pytest.importorskip('mmcv.ops', reason='mmcv has no operators here: python -m dskd_mm.mmcv_ops install')
from cases import boxes_and_scores, cases
from mmcv import _ext
from operators import Draw, compared, patched, run_case

from dskd_mm.mmcv_ops import ext

CASES = cases()
VALUES = np.load(Path(__file__).parent / 'reference' / 'values.npz')
RECORDED = [name for name, case in CASES.items() if not case.live]
COMPILED = (_ext.__file__ or '').endswith('.so')
DEVICES = ['cpu', pytest.param('cuda', marks=pytest.mark.skipif(not torch.cuda.is_available(), reason='no GPU'))]
# What a result may differ by, as a share of its largest element, where bit for bit cannot be: half precision rounds the
# result, a GPU adds in another order.
ROUNDING = dict(float16=4e-3, float32=2e-5, float64=1e-12)
# Overlaps of nearly the threshold and scores that are nearly equal; a softmax that mmcv computes in float16.
HANGS_ON_ROUNDING = dict(float16=('softmax_focal_loss large logits',), float32=(), float64=('nms at ', 'softnms offset'))


def difference(ours: np.ndarray, reference: np.ndarray) -> float:
    """Return the largest difference, as a share of the largest element; infinite if one has NaN where the other has not."""
    assert ours.shape == reference.shape
    if not ours.size:
        return 0.0
    ours, reference = ours.astype(np.float64), reference.astype(np.float64)
    if (np.isnan(ours) != np.isnan(reference)).any():
        return math.inf
    scale = np.nanmax(np.abs(reference)) or 1.0
    return float(np.nanmax(np.abs(ours - reference)) / scale)


def recorded(name: str, dtype: str) -> list[np.ndarray]:
    found = []
    while (key := f'{name}|{dtype}|{len(found)}') in VALUES:
        found.append(VALUES[key])
    return found


def ours(name: str, dtype: torch.dtype, device: str) -> list[Tensor]:
    with patched(ext):
        return run_case(name, CASES[name], dtype, device)


def test_the_record_and_the_cases_belong_together():
    assert {key.split('|')[0] for key in VALUES} == set(RECORDED)
    assert (Path(__file__).parent / 'reference' / 'values.npz').stat().st_size < 300_000


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('dtype', ['float32', 'float64', 'float16'])
@pytest.mark.parametrize('name', RECORDED)
def test_values_and_gradients_are_those_recorded_of_compiled_operators(name, dtype, device):
    """mmcv knows boxes in float32 and, on CPUs, nothing in float16: these are compared with the float32 record."""
    if any(name.startswith(case) for case in HANGS_ON_ROUNDING[dtype]):
        pytest.skip(f'in {dtype} its outcome is another: it hangs on the rounding of float32')
    reference, same = recorded(name, dtype), True
    if not reference:
        reference, same = recorded(name, 'float32'), False
    results = ours(name, getattr(torch, dtype), device)
    assert len(results) == len(reference)
    if same and device == 'cpu':
        tolerance = CASES[name].tolerance or (0 if dtype == 'float32' else ROUNDING[dtype])
    else:
        tolerance = ROUNDING['float32' if dtype == 'float64' and not same else dtype]
    for result, expected in zip(results, reference, strict=True):
        assert result.device.type == device
        if result.is_floating_point():
            assert result.dtype == getattr(torch, dtype)
            assert difference(compared(result), expected) <= tolerance
        else:
            np.testing.assert_array_equal(compared(result), expected)


@pytest.mark.skipif(not COMPILED, reason='this mmcv has no compiled operators to compare with')
@pytest.mark.parametrize('name', CASES)
def test_values_and_gradients_are_those_of_the_compiled_operators_at_hand(name):
    """Compiled for CPUs only, some operators exist on none."""
    try:
        expected = run_case(name, CASES[name], torch.float32)
    except (RuntimeError, AttributeError) as error:
        pytest.skip(f'compiled, it does not run on a CPU: {error}')
    for result, reference in zip(ours(name, torch.float32, 'cpu'), expected, strict=True):
        assert difference(compared(result), compared(reference)) <= CASES[name].tolerance


def overlap(a: list[float], b: list[float]) -> float:
    width, height = (max(0.0, min(a[i + 2], b[i + 2]) - max(a[i], b[i])) for i in (0, 1))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    union = sum(areas) - width * height
    return width * height / union if union else math.nan


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('kind', ['ties', 'zero area', 'random'])
def test_nms_goes_through_the_scores_as_torch_sorts_them(kind, device):
    boxes, scores = boxes_and_scores(Draw(f'{kind} in Python', torch.float32, device), kind)
    rows, kept, groups = boxes.tolist(), [], []
    for i in scores.sort(descending=True).indices.tolist():
        owner = next((k for k in kept if overlap(rows[k], rows[i]) > 0.4), None)
        if owner is None:
            kept.append(i)
            groups.append([i])
        else:
            groups[kept.index(owner)].append(i)
    assert ext.nms(boxes, scores, 0.4, 0).tolist() == kept
    assert ext.nms_match(torch.cat([boxes, scores[:, None]], dim=1), 0.4) == groups


@pytest.mark.parametrize('threshold', [0.6, 0.7, 0.9])
def test_an_overlap_of_the_threshold_suppresses_in_nms_match_alone(threshold):
    """The overlap is the float32 nearest to the threshold, which for 0.6 is above the float64 of that name."""
    boxes = torch.tensor([[0.0, 0, 1, 1], [0, 0, threshold, 1]])
    scores = torch.tensor([0.9, 0.8])
    assert ext.nms(boxes, scores, threshold, 0).tolist() == [0, 1]
    assert ext.nms_match(torch.cat([boxes, scores[:, None]], dim=1), threshold) == [[0, 1]]


def test_nms_takes_and_returns_arrays():
    from mmcv.ops import nms, soft_nms

    boxes, scores = boxes_and_scores(Draw('arrays', torch.float32, 'cpu'), 'random')
    with patched(ext):
        for function in (nms, soft_nms):
            dets, indices = function(boxes.numpy(), scores.numpy(), 0.4)
            expected = function(boxes, scores, 0.4)
            assert isinstance(dets, np.ndarray)
            np.testing.assert_array_equal(dets, expected[0].numpy())
            np.testing.assert_array_equal(indices, expected[1].numpy())


def test_focal_losses_of_no_rows_are_empty():
    logits, target, weight = torch.zeros(0, 5), torch.zeros(0, dtype=torch.long), torch.zeros(0)
    gradient = torch.zeros(0, 5)
    ext.sigmoid_focal_loss_forward(logits, target, weight, gradient, 2.0, 0.25)
    ext.sigmoid_focal_loss_backward(logits, target, weight, gradient, 2.0, 0.25)
    ext.softmax_focal_loss_forward(logits, target, weight, torch.zeros(0), 2.0, 0.25)
    ext.softmax_focal_loss_backward(logits, target, weight, torch.zeros(0), gradient, 2.0, 0.25)


def test_a_background_row_weighs_one():
    """Where compiled operators read behind the weights."""
    logits, target = torch.randn(2, 3), torch.tensor([3, 1])
    plain, weighed = torch.zeros(2, 3), torch.zeros(2, 3)
    ext.sigmoid_focal_loss_forward(logits, target, torch.zeros(0), plain, 2.0, 0.25)
    ext.sigmoid_focal_loss_forward(logits, target, torch.tensor([7.0, 2.0, 7.0]), weighed, 2.0, 0.25)
    torch.testing.assert_close(weighed, plain * torch.tensor([[1.0], [2.0]]))


def test_a_roi_without_area_pools_nothing_and_gets_no_gradient():
    rois, argmax = torch.tensor([[0.0, 5, 5, 2, 2]]), torch.zeros(1, 1, 2, 2, dtype=torch.int)
    output, gradient = torch.ones(1, 1, 2, 2), torch.zeros(1, 1, 8, 8)
    ext.roi_pool_forward(torch.ones(1, 1, 8, 8), rois, output, argmax, 2, 2, 1.0)
    ext.roi_pool_backward(torch.ones(1, 1, 2, 2), rois, argmax, gradient, 2, 2, 1.0)
    assert not output.any() and not gradient.any()


@pytest.mark.parametrize('name', ['nms_rotated', 'voxelize_in_a_later_version'])
def test_what_is_left_out_says_so_at_the_call(name):
    operator = getattr(ext, name)
    with pytest.raises(NotImplementedError, match=rf'no replacement of {name}; .*make env COMPILE=1'):
        operator(1, key=2)
    with pytest.raises(AttributeError):
        ext._nms  # noqa: B018


def test_maximum_pooling_of_roi_align_says_so_at_the_call():
    from mmcv.ops import RoIAlign

    with patched(ext), pytest.raises(NotImplementedError, match="roi_align_forward with pool_mode='max'"):
        RoIAlign(2, pool_mode='max')(torch.zeros(1, 1, 4, 4), torch.zeros(1, 5))


@pytest.mark.parametrize('device', DEVICES)
@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16, torch.float32])
def test_focal_losses_of_sure_and_wrong_logits_are_finite(dtype, device):
    logits = torch.tensor([[9.0, -18.0, 40.0], [-18.0, 9.0, -40.0]], dtype=dtype, device=device)
    weight = torch.zeros(0, device=device)
    for target in (torch.tensor([1, 0]), torch.tensor([2, 2]), torch.tensor([3, 3])):
        loss, gradient = torch.zeros_like(logits), torch.zeros_like(logits)
        ext.sigmoid_focal_loss_forward(logits, target.to(device), weight, loss, 2.0, 0.25)
        ext.sigmoid_focal_loss_backward(logits, target.to(device), weight, gradient, 2.0, 0.25)
        assert loss.isfinite().all() and gradient.isfinite().all()


@pytest.mark.parametrize('device', DEVICES)
def test_deterministic_gradients_of_roi_align_are_those_of_the_kernel(device):
    draw = torch.Generator().manual_seed(0)
    rois = torch.tensor([[0.0, 1, 1, 9, 7], [1, 0, 2, 5, 12]], device=device)
    grad_output = torch.randn(2, 3, 4, 4, generator=draw).to(device)
    found = []
    before = torch.are_deterministic_algorithms_enabled()
    for deterministic in (False, True):
        grad_input = torch.zeros(2, 3, 8, 8, device=device)
        torch.use_deterministic_algorithms(deterministic)
        try:
            ext.roi_align_backward(grad_output, rois, grad_output, grad_output, grad_input, 4, 4, 0.5, 2, 1, True)
        finally:
            torch.use_deterministic_algorithms(before)
        found.append(grad_input)
    assert found[0].any()
    torch.testing.assert_close(found[1], found[0])
