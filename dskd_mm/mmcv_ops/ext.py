"""What mmcv sees as `mmcv._ext`: every operator that is provided, and for any other name a function that says what to do.

mmcv asks for an operator by name when one of its modules is imported, and calls it much later. A name that is not provided
is therefore no error until it is called.
"""

from collections.abc import Callable
from typing import Any, NoReturn

from dskd_mm.mmcv_ops.bbox_overlaps import bbox_overlaps
from dskd_mm.mmcv_ops.carafe import carafe_backward, carafe_forward, carafe_naive_backward, carafe_naive_forward
from dskd_mm.mmcv_ops.deform_conv import (
    deform_conv_backward_input,
    deform_conv_backward_parameters,
    deform_conv_forward,
    modulated_deform_conv_backward,
    modulated_deform_conv_forward,
)
from dskd_mm.mmcv_ops.focal_loss import (
    sigmoid_focal_loss_backward,
    sigmoid_focal_loss_forward,
    softmax_focal_loss_backward,
    softmax_focal_loss_forward,
)
from dskd_mm.mmcv_ops.masked_conv import masked_col2im_forward, masked_im2col_forward
from dskd_mm.mmcv_ops.missing import left_out
from dskd_mm.mmcv_ops.ms_deform_attn import ms_deform_attn_backward, ms_deform_attn_forward
from dskd_mm.mmcv_ops.nms import nms, nms_match, softnms
from dskd_mm.mmcv_ops.psamask import psamask_backward, psamask_forward
from dskd_mm.mmcv_ops.roi_align import roi_align_backward, roi_align_forward
from dskd_mm.mmcv_ops.roi_pool import roi_pool_backward, roi_pool_forward


def get_compiler_version() -> str:
    """Return what mmengine logs as 'MMCV Compiler'."""
    return 'none: operators of dskd_mm.mmcv_ops'


def get_compiling_cuda_version() -> str:
    """Return what mmengine logs as 'MMCV CUDA Compiler'."""
    return 'none: CUDA kernels of torchvision'


__all__ = [
    'bbox_overlaps',
    'carafe_backward',
    'carafe_forward',
    'carafe_naive_backward',
    'carafe_naive_forward',
    'deform_conv_backward_input',
    'deform_conv_backward_parameters',
    'deform_conv_forward',
    'get_compiler_version',
    'get_compiling_cuda_version',
    'masked_col2im_forward',
    'masked_im2col_forward',
    'modulated_deform_conv_backward',
    'modulated_deform_conv_forward',
    'ms_deform_attn_backward',
    'ms_deform_attn_forward',
    'nms',
    'nms_match',
    'psamask_backward',
    'psamask_forward',
    'roi_align_backward',
    'roi_align_forward',
    'roi_pool_backward',
    'roi_pool_forward',
    'sigmoid_focal_loss_backward',
    'sigmoid_focal_loss_forward',
    'softmax_focal_loss_backward',
    'softmax_focal_loss_forward',
    'softnms',
]


def __getattr__(name: str) -> Callable[..., NoReturn]:
    """Stand for an operator that is not provided.

    Raises:
        AttributeError: For a name that no operator has, one with a leading underscore.
    """
    if name.startswith('_'):
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')

    def missing(*args: Any, **kwargs: Any) -> NoReturn:
        raise NotImplementedError(left_out(name))

    return missing
