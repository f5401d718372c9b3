"""In which precision an operator works."""

import torch
from torch import Tensor


def working(*tensors: Tensor) -> tuple[Tensor, ...]:
    """Return the tensors in the precision to compute in, that of the first.

    It is the first one's own, but float32 for what the kernels do not know: bfloat16 anywhere, float16 on a CPU. A result is
    rounded once, where it is copied to the tensor that mmcv handed over.
    """
    first = tensors[0]
    dtype = first.dtype
    if dtype == torch.bfloat16 or (dtype == torch.float16 and not first.is_cuda):
        dtype = torch.float32
    return tuple(tensor.to(dtype) for tensor in tensors)


def widened(tensor: Tensor) -> Tensor:
    """Return a tensor in float32 at least, where float16, which mmdet hands over on GPUs, does not do."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
